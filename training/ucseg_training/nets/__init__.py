"""The networks of UC-Seg: subnet A (U-Net), subnet B (V-Net), the UPG that fuses them, and the trio.

Public names are this project's. Attribute names inside the modules are not: they were chosen so that `state_dict()`
has exactly the keys of an upstream checkpoint (`net_1.`, `net_2.`, `generate_pseudo_simple.` and everything below
them), which is why some of them do not read like the rest of the code.

Spatial axes are taken in the order given; no network here knows which of them is the slice axis.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from ucseg_training.nets.config import Activation, TrioConfig
from ucseg_training.nets.dual import DualNet, TrioOutput
from ucseg_training.nets.subnet import SubnetOutput, init_kaiming
from ucseg_training.nets.unet import UNet2d, UNet3d
from ucseg_training.nets.upg import Upg, map_from_tokens, tokens_from_map, uncertainty
from ucseg_training.nets.vnet import VNet

__all__ = [
    "Activation",
    "DualNet",
    "SubnetOutput",
    "TrioConfig",
    "TrioOutput",
    "UNet2d",
    "UNet3d",
    "Upg",
    "VNet",
    "init_kaiming",
    "map_from_tokens",
    "tokens_from_map",
    "uncertainty",
]
