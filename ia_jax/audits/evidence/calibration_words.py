"""A calibration's figures for a person."""

from collections.abc import Mapping
from typing import Any

from ia_jax.audits.evidence.calibration import Calibration


def in_words(calibration: Calibration) -> str:
    """Its figures for a person."""

    def told(c: Mapping[str, Any] | None) -> str:
        if not c or c["rate"] is None:
            return "-"
        of = f" of {c['organisms']}" if "organisms" in c else ""
        return f"{c['rate']:.2f} ({c['ci95'][0]:.2f} to {c['ci95'][1]:.2f}){of}"

    made, count = calibration.made_of, len(calibration.null_scores)
    promise = f"at most {100 * calibration.alpha:g} % of clean fine-tunes like the {count} that this rests on"
    lines = [
        f"IA {calibration.ia} on {calibration.base}: {made['claims']} claims of {_count(made)}",
        f"reported above {calibration.threshold:.3f}: {promise}",
    ]
    own = calibration.figures
    parts = {"unseen models": own.get("in_distribution"), "unseen categories and sorts": own.get("left_out")}
    apart = {"the test": own.get("test"), **{f"the audit {a}": f for a, f in own.get("audits", {}).items()}}
    parts |= {f"{title} ({_count(f)})": f for title, f in apart.items() if f}
    for title, f in parts.items():
        if not f:
            continue
        cells = {
            "AUROC": f.get("auroc"),
            "Brier": f.get("brier"),
            "calibration error": f.get("expected_calibration_error"),
            "false reports": f["false_reports"],
            "wrong reports of organisms": f["wrong_reports"],
            "right reports kept": f["kept"],
            "of all organisms": f["found"],
        }
        cells |= {"can't tell": f["unsure"], "of clean ones": f["unsure_nulls"]} if "unsure" in f else {}
        lines.append(f"{title}: " + ", ".join(f"{what} {told(c)}" for what, c in cells.items()))
        if f.get("too_few"):
            lines.append(f"  (too few nulls are left without {', '.join(f['too_few'])})")
    return "\n".join(lines)


def _count(of: Mapping[str, Any]) -> str:
    return f"{len(of['organisms'])} organisms and {len(of['nulls'])} clean fine-tunes"
