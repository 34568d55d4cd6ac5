"""Pictures, texts, and readers of public layouts at any size."""
