"""Encoders: R(2+1)D, R3D and SlowFast for video, ResNets for log-mel spectrograms, any of timm.

=======================  =====================  ==========================================
name                     modality kinds         network
=======================  =====================  ==========================================
``r2plus1d_18``          video                  R(2+1)D-18 as torchvision builds it
``r2plus1d_18_xdc``      video                  R(2+1)D-18 as XDC and VMZ build it
``r3d_18``               video                  ResNet3D-18
``slowfast_r50``         video                  SlowFast-R50, AVBert's visual CNN
``slow_r50_avbert``      video                  the visual CNN that AVBert released
``resnet18_audio``       audio                  ResNet-18 with one input channel
``resnet18_vmz``         audio                  VMZ's acoustic ResNet-18
``resnet50_half_audio``  audio                  AVBert's audio CNN, half a ResNet-50
``timm``                 image, audio           any model of timm, without its classifier
=======================  =====================  ==========================================

None of them has a classifier: heads belong to objectives and evaluators.
"""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_backbones(register: Register) -> None:
    """Register the encoders under the names that recipes use."""
    register("r2plus1d_18", "mmssl_backbones.video_resnet:r2plus1d_18")
    register("r2plus1d_18_xdc", "mmssl_backbones.video_resnet:r2plus1d_18_xdc")
    register("r3d_18", "mmssl_backbones.video_resnet:r3d_18")
    register("slowfast_r50", "mmssl_backbones.slowfast:SlowFastR50")
    register("slow_r50_avbert", "mmssl_backbones.slowfast:SlowR50AVBert")
    register("resnet18_audio", "mmssl_backbones.audio_resnet:ResNet18Audio")
    register("resnet18_vmz", "mmssl_backbones.audio_resnet:ResNet18VMZ")
    register("resnet50_half_audio", "mmssl_backbones.audio_resnet50:ResNet50HalfAudio")
    register("timm", "mmssl_backbones.timm_models:Timm")
