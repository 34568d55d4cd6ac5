"""One setting at a time, in both stages (Appendix B and C)."""
