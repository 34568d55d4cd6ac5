"""Shared by tests of several rooms; out of test_instruct_ablations."""




def rows_of(study: str, arms: dict, seeds: int = 3) -> list[dict]:
    """Made-up rows: arm -> {column: value}; seeds differ by hundredths."""
    rows = []
    for arm, columns in arms.items():
        value = next((float(word) for word in [arm.split()[0]] if word.replace(".", "").isdigit()), None)
        for seed in range(seeds):
            moved = {k: v + 0.01 * seed if isinstance(v, float) else v for k, v in columns.items()}
            curve = {"step": [0, 1, 2, 3], "loss": [moved.get("loss", 1.0)] * 4}
            rows.append({"study": study, "arm": arm, "value": value, "seed": seed, "curve": curve} | moved)
    return rows
