"""What was asked of a pruning and what was got: plain data for the log, a table for people."""

from typing import Any

Record = dict[str, Any]


def record(asked: Record, got: Record) -> Record:
    """The event as flat, JSON-ready values, with the denominator in each name.

    prune/weight_sparsity_of_layer_weights: removed / dense, over weights of convolutions and linear
    layers. prune/node_sparsity_of_prunable_units: removed / dense, over the units that may go.
    prune/compression_ratio: dense / kept parameters of the whole network, masked ones not kept.
    prune/skipped_steps: training steps whose gradients were not finite and are in no average.
    prune/compression_error: (r − r_e) / r of the ratio asked for (thesis, eq. 4.2): positive where
    too little went.
    """
    made = {f"prune/{key}": value for key, value in (asked | got).items()}
    ratio = got["params_dense"] / max(1, got["params_kept"])
    made["prune/compression_ratio"] = ratio
    if asked.get("compression_ratio_asked"):
        wanted = asked["compression_ratio_asked"]
        made["prune/compression_error"] = (wanted - ratio) / wanted
    return made


def printed(event: Record) -> str:
    """A table of every layer or axis: kept, dense, removed; then the totals."""
    layers = event["prune/layers"]
    width = max([len(name) for name in layers] + [5])
    lines = [f"{'layer':{width}}  {'kept':>10}  {'of':>10}  removed"]
    for name, counts in layers.items():
        removed = 1 - counts["kept"] / counts["of"]
        lines.append(f"{name:{width}}  {counts['kept']:>10,}  {counts['of']:>10,}  {removed:7.2%}")
    if event["prune/asked"] is not None:
        lines.append(
            f"{event['prune/measure']}: {event['prune/asked']:.4%} asked,"
            f" {event['prune/got']:.4%} removed"
        )
    lines.append(f"compression ratio {event['prune/compression_ratio']:.4g}")
    return "\n".join(lines)
