"""From image features to B_t: the BEVFormer encoder, its attentions, its temporal alignment and memory."""

from bevstack.models.bev.alignment import WarpAlignment, warp_bev
from bevstack.models.bev.encoder import BEVFormerEncoder, BEVFormerLayer
from bevstack.models.bev.memory import push_memory
from bevstack.models.bev.motion_embedding import MotionEmbedding
from bevstack.models.bev.spatial_cross_attention import SpatialCrossAttention
from bevstack.models.bev.temporal_concatenation import TemporalConcatenation
from bevstack.models.bev.temporal_self_attention import TemporalContext, TemporalSelfAttention
from bevstack.models.bev.visibility import VisibilityPlan, plan_visibility

__all__ = [
    "BEVFormerEncoder",
    "BEVFormerLayer",
    "MotionEmbedding",
    "SpatialCrossAttention",
    "TemporalConcatenation",
    "TemporalContext",
    "TemporalSelfAttention",
    "VisibilityPlan",
    "WarpAlignment",
    "plan_visibility",
    "push_memory",
    "warp_bev",
]
