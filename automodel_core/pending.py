"""Names of other projects' YAML files that this version knows and does not have yet.

They are refused by name, at their line, instead of being called unknown. A name leaves this table
when an entry point in `automodel.aliases` takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping

# Foreign name -> the kind of target it will be.
PENDING: Mapping[str, str] = {
    "nemo_automodel.components.datasets.vlm.datasets.make_medpix_dataset": "datasets",
    "nemo_automodel.components.datasets.vlm.datasets.make_rdr_dataset": "datasets",
    "nemo_automodel.components.datasets.vlm.datasets.make_cord_v2_dataset": "datasets",
    "nemo_automodel.components.datasets.vlm.collate_fns.default_collate_fn": "collators",
}
