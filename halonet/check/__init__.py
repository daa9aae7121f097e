"""Whether the operator's backends are right on this machine, and how fast."""
