"""What τ does, and when it breaks a run (Sec. 4.3, Figure 5)."""
