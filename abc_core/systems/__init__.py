"""Other embedders behind one protocol, a card each; the authors' released weights."""
