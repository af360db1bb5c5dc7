"""The commands of the group `mmssl data`, one file for each."""
