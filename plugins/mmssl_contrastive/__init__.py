"""Contrastive objectives between any modalities.

===========  ====================================================  ==========================
name         what a sample's other modality is told from           by
===========  ====================================================  ==========================
``infonce``  those of the batch                                    a softmax, both ways
``siglip``   those of the batch                                    a sigmoid for each pair
``avid``     a memory of all training samples (AVID)               noise-contrastive estimation
===========  ====================================================  ==========================

VATT's losses are in `mmssl_vatt`.
"""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_objectives(register: Register) -> None:
    """Register the objectives under the names that recipes use."""
    register("infonce", "mmssl_contrastive.infonce:InfoNCE")
    register("siglip", "mmssl_contrastive.siglip:SigLIP")
    register("avid", "mmssl_contrastive.avid:AVID")
