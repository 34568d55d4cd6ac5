"""Profiles, the runner of notebooks, the check before it, the site after it, and the figures again."""
