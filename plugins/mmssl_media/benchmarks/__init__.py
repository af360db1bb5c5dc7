"""Datasets as the field keeps them on disk: in the folders and files that their authors publish."""
