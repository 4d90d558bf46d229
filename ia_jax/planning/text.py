"""A plan's report as a page of text."""

from typing import Any

from ia_jax.planning.prices import amount


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
    compiled = "compile_s" in report
    if compiled:
        memory = f"{report['hbm_gib']} GiB of {report['capacity_gib']} GiB a device: "
        memory += "fits" if report["fits"] else "DOES NOT FIT"
        memory += f" (arguments {report['argument_gib']}, temporaries {report['temp_gib']})"
    else:
        memory = f"{report['argument_gib']} GiB of {report['capacity_gib']} GiB a device stay there: "
        memory += "a step's own comes on top, unknown" if report["fits"] else "DOES NOT FIT"
    bounds = ", ".join(f"{name} {s:.3g}" for name, s in report["bounds_s"].items())
    step = f"at least {report['predicted_step_s']:.3g} s, bound by {report['bound']} (seconds of {bounds}); "
    step += f"MFU of real tokens at most {report['predicted_mfu']:.1%}"
    hours = ", ".join(f"{name} {h}" for name, h in report["chip_hours"].items())
    lines = [
        title,
        f"memory   {memory}",
        f"data     {report['fill']:.1%} of a batch's tokens are real ({report['data']})"
        + (f"; {report['bank']}" if compiled else ""),
        f"{what:<9}{step}",
        f"FLOPs    {report['flops_per_chip']:.3g} a device and {what}; peaks from {report['peaks']}",
        f"job      {report['steps']} {what}s; chip-hours at least: {hours}",
    ]
    if "price" in report:
        lines.append(f"dollars  {_dollars(report)}")
    if not compiled:
        return "\n".join([*lines, "ROOFLINE BY HAND: nothing was compiled or run (docs/plan.md has the formulas)"])
    lines += [
        f"gathers of activations: {report['activation_gathers']}; compiled in {report['compile_s']} s",
        "collectives (of the whole program, each device):",
    ]
    for c in report["collectives"][:14]:
        lines.append(f"  {c['op']:19}{c['bytes'] / 2**20:10.2f} MiB x {c['count']:<6}{c['what']:12}{c['shape']}")
    if len(report["collectives"]) > 14:
        lines.append(f"  and {len(report['collectives']) - 14} smaller kinds")
    if "tokens_per_s" in report:
        lines.append(f"at most {report['tokens_per_s']:,} real tokens/s with {' '.join(report['overrides'])}")
    return "\n".join(lines)


def _dollars(report: dict[str, Any]) -> str:
    if report["dollars"] is None:
        return f"not known: {report['price']}"
    each = ", ".join(f"{name} {amount(x)}" for name, x in report["dollars"].items())
    return f"at least {each}, at {report['price']}"
