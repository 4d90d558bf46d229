"""A plan's report as a page of text."""

from typing import Any


def as_text(report: dict[str, Any]) -> str:
    """The report of `plan` for a person."""
    mesh, batch = report["mesh"], report["batch"]
    title = f"{report['model']}, {report['stage']} on {report['topology']}: {report['chips']} chips, "
    title += (
        f"{' x '.join(f'{axis} {n}' for axis, n in mesh.items())}, {batch['organisms']} organisms x {batch['rows']} "
    )
    title += f"{'prompts' if report['stage'] == 'sample' else 'rows'} x {batch['length']} tokens, "
    title += f"remat {report['remat']}"
    if "reason" in report:
        return f"{title}\ndoes not fit {report['capacity_gib']} GiB a chip: {report['reason']}"
    what = "token" if report["stage"] == "sample" else "step"
    memory = f"{report['hbm_gib']} GiB of {report['capacity_gib']} GiB a chip: "
    memory += "fits" if report["fits"] else "DOES NOT FIT"
    memory += f" (arguments {report['argument_gib']}, temporaries {report['temp_gib']})"
    bounds = ", ".join(f"{name} {s:.3g}" for name, s in report["bounds_s"].items())
    step = f"at least {report['predicted_step_s']:.3g} s, bound by {report['bound']} (seconds of {bounds}); "
    step += f"MFU of real tokens at most {report['predicted_mfu']:.1%}"
    hours = ", ".join(f"{name} {h}" for name, h in report["chip_hours"].items())
    lines = [
        title,
        f"memory   {memory}",
        f"data     {report['fill']:.1%} of a batch's tokens are real ({report['data']}); {report['bank']}",
        f"{what:<9}{step}",
        f"FLOPs    {report['flops_per_chip']:.3g} a chip and {what}; peaks from {report['peaks']}",
        f"job      {report['steps']} {what}s; chip-hours at least: {hours}",
        f"gathers of activations: {report['activation_gathers']}; compiled in {report['compile_s']} s",
        "collectives (of the whole program, each chip):",
    ]
    for c in report["collectives"][:14]:
        lines.append(f"  {c['op']:19}{c['bytes'] / 2**20:10.2f} MiB x {c['count']:<6}{c['what']:12}{c['shape']}")
    if len(report["collectives"]) > 14:
        lines.append(f"  and {len(report['collectives']) - 14} smaller kinds")
    if "tokens_per_s" in report:
        lines.append(f"at most {report['tokens_per_s']:,} real tokens/s with {' '.join(report['overrides'])}")
    return "\n".join(lines)
