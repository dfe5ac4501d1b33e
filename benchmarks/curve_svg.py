"""Panels of curves over a common logarithmic axis as one SVG file, without a plotting library."""
import math

WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 250, 62, 40, 34
COLOURS = ["#0b6e4f", "#2a9d8f", "#7cb518", "#d1495b", "#9d6b53", "#777777", "#3d5a80", "#ee9b00"]


def panels_svg(panels, x_label, y_label):
    """panels: {title: {name: [(x, y > 0), …]}}; curves of one name have one colour, named under the panels."""
    ys = [y for curves in panels.values() for points in curves.values() for _, y in points]
    xs = [x for curves in panels.values() for points in curves.values() for x, _ in points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    total = LEFT + len(panels) * (WIDTH + GAP)

    def place(x, y):
        return (f"{WIDTH * (x - min(xs)) / (max(xs) - min(xs)):.1f}",
                f"{HEIGHT * (high - math.log10(y)) / max(1, high - low):.1f}")

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {TOP + HEIGHT + 84}" font-family="sans-serif" font-size="12">',
           f'<rect width="{total}" height="{TOP + HEIGHT + 84}" fill="white"/>',
           text(14, TOP + HEIGHT / 2, y_label, f'text-anchor="middle" transform="rotate(-90 14 {TOP + HEIGHT / 2})"')]
    for number, (title, curves) in enumerate(panels.items()):
        out.append(f'<g transform="translate({LEFT + number * (WIDTH + GAP)} {TOP})">')
        out.append(text(WIDTH / 2, -14, title, 'text-anchor="middle" font-weight="bold"'))
        for power in range(low, high + 1):
            y = place(min(xs), 10.0 ** power)[1]
            out.append(f'<path d="M0 {y}H{WIDTH}" stroke="#dddddd"/>')
            if number == 0:
                out.append(text(-6, float(y) + 4, f"1e{power}", 'text-anchor="end"'))
        for x in sorted(set(xs)):
            out.append(text(place(x, 10.0 ** low)[0], HEIGHT + 16, f"{x:g}", 'text-anchor="middle"'))
        out.append(text(WIDTH / 2, HEIGHT + 34, x_label, 'text-anchor="middle"'))
        for name, points in curves.items():
            line = " ".join(",".join(place(x, y)) for x, y in points)
            colour = COLOURS[names.index(name) % len(COLOURS)]
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append("</g>")
    for number, name in enumerate(names):
        x = LEFT + number * (total - LEFT) / len(names)
        colour = COLOURS[number % len(COLOURS)]
        out.append(f'<path d="M{x:.1f} {TOP + HEIGHT + 62}h18" stroke="{colour}" stroke-width="3"/>')
        out.append(text(f"{x + 24:.1f}", TOP + HEIGHT + 66, name, ""))
    return "\n".join([*out, "</svg>", ""])


def text(x, y, words, style):
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'
