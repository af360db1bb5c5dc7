"""Contrastive objectives between any modalities."""
