"""Networks of the agents: transformer heads, image encoders and normalization."""
