"""The action `imf-ray dataset convert SRC DST`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imf_ray.claims import claim
from imf_ray.cluster import DATA_POOL, init_ray, label_selector
from imf_ray.config import shell_override
from imf_ray.conversion.run import (
    convert_episodes,
    finish,
    plan_conversion,
    prepare_folder,
    require_valid,
)
from imf_ray.data.channel_order import check_channel_order
from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.index import check_dataset
from imf_ray.errors import UserError
from imf_ray.folders import display
from imf_ray.progress_bars import ProgressBars
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, is_remote, local_dir
from imf_ray.terminal import console

BAR, PROGRESS_LINES = "Converting episodes", 10


def convert(config: Config, source: AnyPath, target: str) -> str:
    """Write the episodes of a data set in another format, into a new folder.

    The same command resumes a conversion that was stopped.

    Raises:
        UserError: an episode cannot be read (unless `data.on_bad_episode` is `skip`), the episodes
            cannot become one data set, or the folder has other contents.
    """
    if is_remote(target):
        raise UserError(f"{target} is a URL. Convert into a local folder and copy it.")
    folder = local_dir(target)
    format, paths = find_dataset(source, config.data.format, str)
    results = check_dataset(source, paths, format, config.data.features)
    valid = require_valid(results, skip=config.data.on_bad_episode == "skip")
    images = {r.path: r.images for r in valid.values() if isinstance(r, EpisodeMetadata)}
    check_channel_order(images, config.data.channel_order, source)
    conversion = plan_conversion(valid, folder, config)
    if len(valid) < len(results):
        console.print(f"{len(results) - len(valid)} invalid episodes are left out.")
    if conversion.left_out:
        console.print(f"Not converted: {', '.join(conversion.left_out)}", soft_wrap=True)
    with claim(folder, "choose another folder"):
        done, total = prepare_folder(conversion), len(conversion.episodes)
        size = init_ray(config).pool(DATA_POOL)
        options = {"num_cpus": 1, **label_selector(config.cluster.node_pool_label, DATA_POOL)}
        with ProgressBars(lines=PROGRESS_LINES) as bars:
            bars.start(BAR, total)
            bars.update(BAR, done, total)
            records = convert_episodes(
                conversion,
                max(1, int(size.cpus)),
                options,
                on_episode=lambda written: bars.update(BAR, written, total),
            )
        finish(conversion, records)
    steps = sum(record["length"] for record in records)
    console.print(f"{folder}: {total} episodes, {steps} steps", soft_wrap=True)
    for camera, loss in _mean_losses(records).items():
        console.print(
            f"Encoding changed the images of {camera} by {loss:.2f} of 255 grey levels on average."
        )
    dataset = shell_override("data.dataset_dir", display(folder))
    return f"train recipe=cpu_real {dataset} run_name=my_run"


def _mean_losses(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean loss of encoding by camera."""
    steps = sum(record["length"] for record in records)
    return {
        camera: sum(record["loss"][camera] * record["length"] for record in records) / steps
        for camera in records[0]["loss"]
    }
