"""VATT: Transformers on raw video, sound and text (Akbari et al., NeurIPS 2021)."""
