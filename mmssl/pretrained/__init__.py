"""Using what was learned: encoders of a run as they are taken elsewhere, and what they see."""
