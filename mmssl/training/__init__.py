"""The loop, schedules, checkpoints, trackers."""
