"""The whole pipeline with other seeds."""
