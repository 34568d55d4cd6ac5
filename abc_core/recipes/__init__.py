"""Ten systems' training recipes from the same towers, and their table."""
