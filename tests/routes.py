"""Every route as a path that can be asked for: its parameters filled in with what there is nothing of."""

from service.access import ACCESS

NOTHING = "0" * 64
PARTS = {"result_id": NOTHING, "image_sha256": NOTHING, "item_id": "7", "lease_id": NOTHING[:32], "file": "none.js"}
URLS = {route: route.format(**PARTS) for _, route in ACCESS}
"""Route -> its path."""
