"""Motion sensors: recordings beside videos, a network for them, and made-up ones to try it with."""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_modalities(register: Register) -> None:
    """Accelerometers, gyroscopes and other channels over time."""
    register("imu", "mmssl_imu.modality:IMU")


@hookimpl
def register_backbones(register: Register) -> None:
    """A ResNet over time."""
    register("imu_resnet", "mmssl_imu.backbone:IMUResNet")


@hookimpl
def register_datasets(register: Register) -> None:
    """Made-up recordings beside the videos of any dataset."""
    register("beside", "mmssl_imu.beside:Beside")
