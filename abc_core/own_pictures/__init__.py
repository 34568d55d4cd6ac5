"""A folder of one's own: checked, split, explored, adapted to."""
