"""AVBert: audio-visual Transformers that share their parameters (Lee et al., ICLR 2021).

======================  =====================  ==========================================
name                    modality kinds         network
======================  =====================  ==========================================
``avbert``              video and audio, or    CNNs, a unimodal Transformer for each modality
                        any two and more       and a multimodal one, for long sequences of clips
======================  =====================  ==========================================

Its pretraining is the objective ``avbert``: masked embeddings (MEP), told from negatives that are
drawn by their content (CANS), and correct pairs (CPP).

The backbone is joint: its key in a recipe is ``video+audio``, or such as ``video+audio+imu``. Its
low-rank linear maps, whose rotations stay orthogonal, are `mmssl_avbert.low_rank` and serve any
Transformer.
"""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_backbones(register: Register) -> None:
    """Register the joint backbone under the name that recipes use."""
    register("avbert", "mmssl_avbert.backbone:AVBert")


@hookimpl
def register_objectives(register: Register) -> None:
    """Register the backbone's pretraining."""
    register("avbert", "mmssl_avbert.objective:AVBertPretraining")
