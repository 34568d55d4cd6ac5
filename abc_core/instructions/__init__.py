"""Regions, their instructions, and what is held out of training."""
