"""Options of a small agent."""

TINY_AGENT = (
    "agent.vision_backbone.stage_widths=[8,8,16,16]",
    "agent.vision_backbone.blocks_per_stage=[1,1,1,1]",
    "agent.vision_backbone.num_keypoints=8",
    "agent.head.n_emb=32",
    "agent.head.n_layer=2",
    "agent.head.n_head=2",
    "agent.head.n_kv_head=1",
)
"""The smallest agent with images and an AttnRes head."""
