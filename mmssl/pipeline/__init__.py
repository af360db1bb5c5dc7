"""From a recipe to a finished run: assembling, stages, the run folder, launching."""
