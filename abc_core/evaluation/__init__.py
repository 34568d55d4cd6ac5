"""Ranks, recall and intervals; any system on any task."""
