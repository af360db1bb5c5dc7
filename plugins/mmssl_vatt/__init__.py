"""VATT: Transformers on raw video, sound and text (Akbari et al., NeurIPS 2021).

=========================  =====================  ==========================================
name                       modality kinds         network
=========================  =====================  ==========================================
``vatt``                   its tokenizer's        a Transformer behind a tokenizer
``vatt_text``              text                   the text tower, a T5 encoder
``vatt_agnostic``          its tokenizers'        VATT-MA: one Transformer for all modalities
``video_patches``          video                  tokenizer
``waveform_patches``       waveform               tokenizer
``spectrogram_patches``    audio                  tokenizer
``word_embeddings``        text                   tokenizer
=========================  =====================  ==========================================

Its pretraining is the objective ``vatt``: NCE with sound and MIL-NCE with text, of any modalities.

``vatt_agnostic`` is joint: its key in a recipe is such as ``video+audio+text``. A tokenizer is a
backbone whose tokens have their position embeddings, so that a plugin brings a further modality to
the Transformers by registering one.
"""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_backbones(register: Register) -> None:
    """Register Transformers and tokenizers under the names that recipes use."""
    register("vatt", "mmssl_vatt.backbone:vatt")
    register("vatt_text", "mmssl_vatt.text_tower:VattText")
    register("vatt_agnostic", "mmssl_vatt.backbone:VattAgnostic")
    register("video_patches", "mmssl_vatt.tokenizers:VideoPatches")
    register("waveform_patches", "mmssl_vatt.tokenizers:WaveformPatches")
    register("spectrogram_patches", "mmssl_vatt.tokenizers:SpectrogramPatches")
    register("word_embeddings", "mmssl_vatt.tokenizers:WordEmbeddings")


@hookimpl
def register_objectives(register: Register) -> None:
    """Register VATT's pretraining."""
    register("vatt", "mmssl_vatt.objective:VATT")
