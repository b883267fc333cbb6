"""The colours of the page."""

import re

from together_async.batch.report.style import STYLE


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def test_colours_have_contrast_in_light_and_dark():
    """By WCAG 2.2: text has a contrast of 4.5 to 1 to its background (1.4.3), graphics 3 to 1 (1.4.11)."""
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)")
    for style in (light, dark):
        colour = {name: luminance(value) for name, value in re.findall(r"--(\w+): (#[0-9a-f]{6});", style)}
        for names, least in ((("text", "quiet"), 4.5), (("answers", "errors", "limited", "queued"), 3.0)):
            for name in names:
                for behind in ("page", "card") if least > 4 else ("card",):
                    low, high = sorted((colour[name], colour[behind]))
                    assert (high + 0.05) / (low + 0.05) >= least, (name, behind)
