"""Slow and obvious twins of what the program computes fast; tests compare the two.

Nothing here imports the program: plain numbers in, plain numbers out, written from the definitions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import permutations

Box = Sequence[float]
Table = Sequence[Sequence[float]]


# -- boxes ----------------------------------------------------------------------------------------


def area(box: Box) -> float:
    """Width times height; 0 for a box turned inside out."""
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def intersection(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where the union has no area."""
    union = area(a) + area(b) - intersection(a, b)
    return intersection(a, b) / union if union > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """IoU less the share of the enclosing box that neither box covers."""
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = area(a) + area(b) - intersection(a, b)
    return iou(a, b) - ((hull - union) / hull if hull > 0 else 0.0)


def suppressed(boxes: Sequence[Box], scores: Sequence[float], limit: float, groups: Sequence[int]) -> list[int]:
    """Rows that survive non-maximum suppression, best first; equal scores in the order of the rows."""
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [i for i in kept if groups[i] == groups[row]]
        if all(iou(boxes[row], boxes[i]) <= limit for i in rivals):
            kept.append(row)
    return kept


def mapped_box(box: Box, matrix: Table) -> tuple[float, float, float, float]:
    """The box around the four mapped corners of a box; `matrix` has two rows of three numbers."""
    corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
    xs, ys = ([row[0] * x + row[1] * y + row[2] for x, y in corners] for row in matrix)
    return min(xs), min(ys), max(xs), max(ys)


# -- run-length codes -----------------------------------------------------------------------------


def run_lengths(mask: Sequence[Sequence[bool]]) -> list[int]:
    """COCO's runs: column by column, background first (a run of 0 where the first pixel is set)."""
    runs, value = [0], False
    for x in range(len(mask[0]) if mask else 0):
        for row in mask:
            if bool(row[x]) != value:
                runs.append(0)
                value = not value
            runs[-1] += 1
    return runs


def compressed(runs: Sequence[int]) -> bytes:
    """COCO's compressed code: each run (from the fourth on, less the run before last) in groups of 5 bits.

    The lowest group comes first; each is written as the character 48 + group, plus 32 where another
    follows. Numbers may be negative: the last group's bit 16 is the sign.
    """
    code = bytearray()
    for at, run in enumerate(runs):
        left = run - runs[at - 2] if at > 2 else run
        while True:
            group = left & 31
            left >>= 5  # arithmetic: of a negative number -1 remains
            done = left == (-1 if group & 16 else 0)
            code.append(48 + group + (0 if done else 32))
            if done:
                break
    return bytes(code)


def start_lengths(mask: Sequence[Sequence[bool]], by_rows: bool) -> list[int]:
    """Runs as start, length, start, length …: pixels numbered from 1 along rows, or along columns."""
    height, width = len(mask), len(mask[0]) if mask else 0
    places = [(x, y) for y in range(height) for x in range(width)]
    if not by_rows:
        places = [(x, y) for x in range(width) for y in range(height)]
    numbers: list[int] = []
    for number, (x, y) in enumerate(places, 1):
        if not mask[y][x]:
            continue
        if numbers and numbers[-2] + numbers[-1] == number:
            numbers[-1] += 1
        else:
            numbers += [number, 1]
    return numbers


def painted(numbers: Sequence[int], width: int, height: int, by_rows: bool) -> list[list[bool]]:
    """The mask of such runs, pixel by pixel."""
    mask = [[False] * width for _ in range(height)]
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        for number in range(start - 1, start - 1 + length):
            y, x = divmod(number, width) if by_rows else (number % height, number // height)
            mask[y][x] = True
    return mask


# -- polygons -------------------------------------------------------------------------------------


def inside(x: float, y: float, rings: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether a ray from a point to the left crosses the rings an odd number of times."""
    crossed = 0
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                crossed += 1
    return crossed % 2 == 1


# -- pairing truth with findings ------------------------------------------------------------------


def greedy_matching(
    table: Table, scores: Sequence[float], ignored: Sequence[bool], limit: float, most: int
) -> list[tuple[int, bool, bool]]:
    """COCO's matching of one image at one IoU limit: (finding, hit, neutral), best finding first.

    Follows the published loop: scored truths stand before ignored ones; a later truth of equal overlap
    wins; once a scored truth is taken, ignored ones are not looked at; an ignored truth may be taken again.
    """
    limit = min(limit, 1 - 1e-10)
    taken: set[int] = set()
    order = sorted(range(len(ignored)), key=lambda t: (ignored[t], t))
    outcome = []
    for finding in sorted(range(len(scores)), key=lambda f: (-scores[f], f))[:most]:
        best, needed = -1, limit
        for truth in order:
            if truth in taken and not ignored[truth]:
                continue
            if best >= 0 and not ignored[best] and ignored[truth]:
                break
            if table[finding][truth] >= needed:
                best, needed = truth, table[finding][truth]
        if best >= 0:
            taken.add(best)
        outcome.append((finding, best >= 0 and not ignored[best], best >= 0 and ignored[best]))
    return outcome


def best_total(table: Table, iou_min: float) -> float:
    """The largest total IoU of any one-to-one pairing whose pairs all reach `iou_min`, by trying them all."""
    found, truths = len(table), len(table[0]) if table else 0
    if found > truths:
        return best_total([[table[f][t] for f in range(found)] for t in range(truths)], iou_min)
    return max(
        sum(table[f][t] for f, t in enumerate(chosen) if table[f][t] >= iou_min)
        for chosen in permutations(range(truths), found)
    )


# -- names ----------------------------------------------------------------------------------------


def decided(
    shares: Mapping[str, float], parents: Mapping[str, str], reportable: Collection[str], sure: float, known: str | None
) -> tuple[str | None, bool]:
    """The deepest name of the most probable leaf's line that is sure, and whether a person should look."""
    leaf = max(shares, key=lambda name: shares[name])
    line = [leaf]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    for name in line:
        together = 0.0
        for other, share in shares.items():
            above = other
            while above is not None:
                if above == name:
                    together += share
                    break
                above = parents.get(above)
        if together >= sure:
            return name, name not in reportable
    if known is not None:
        return known, True
    return (line[-1] if len(line) > 1 else None), True


# -- comparing answers ----------------------------------------------------------------------------


def macro_f1(asked: Sequence[str], said: Sequence[str]) -> float:
    """The mean F1 of the names that were asked for, one name after the other."""
    f1s = []
    for name in set(asked):
        right = sum(a == s == name for a, s in zip(asked, said, strict=True))
        f1s.append(2 * right / (list(asked).count(name) + list(said).count(name)))
    return sum(f1s) / len(f1s)


def paired_differences(
    draws: Sequence[Sequence[int]],
    image: Sequence[int],
    asked: Sequence[str],
    said: Sequence[str],
    baseline: Sequence[str],
) -> list[float]:
    """Macro-F1 less the baseline's in each resample, both on the same cells, written out one by one.

    `draws` says how often each image is in a resample; a resample without cells has no figure.
    """
    differences = []
    for times in draws:
        rows = [row for row, of in enumerate(image) for _ in range(int(times[of]))]
        if rows:
            truth = [asked[row] for row in rows]
            ours, theirs = [said[row] for row in rows], [baseline[row] for row in rows]
            differences.append(macro_f1(truth, ours) - macro_f1(truth, theirs))
    return differences


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share lies; between two values in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


# -- the score of the CytologIA challenge ---------------------------------------------------------

Row = tuple[str, str, Box, str]  # id, image, corners, name


def challenge_score(truths: Sequence[Row], findings: Sequence[Row]) -> dict[str, float]:
    """The challenge's score, one truth at a time. Exact where the corners are fractions."""
    pairs: list[tuple[str, str]] = []
    terms = []
    for image in dict.fromkeys(row[1] for row in truths):
        ids = {row[0] for row in truths if row[1] == image}
        handed_in: dict[str, Row] = {}
        for row in findings:
            if row[0] in ids and row[0] not in handed_in:
                handed_in[row[0]] = row
        kept: list[Row] = []
        for row in handed_in.values():
            if not any((tuple(row[2]), row[3]) == (tuple(other[2]), other[3]) for other in kept):
                kept.append(row)
        for truth in truths:
            if truth[1] != image:
                continue
            best, name = None, "None"
            for row in kept:
                overlap = giou(truth[2], row[2])
                if best is None or overlap > best:
                    best, name = overlap, row[3]
            terms.append(truth[2][0] * 0 if best is None else (best + 1) / 2)
            pairs.append((truth[3], name))
    giou_term = sum(terms) / len(terms)
    f1s = []
    for name in {name for pair in pairs for name in pair}:
        right = sum(asked == said == name for asked, said in pairs)
        occurs = sum((asked == name) + (said == name) for asked, said in pairs)
        f1s.append(right * 2 / (occurs * type(giou_term)(1)))
    macro_f1 = sum(f1s) / len(f1s)
    return {"score": giou_term / 5 + macro_f1 * 4 / 5, "giou_term": giou_term, "macro_f1": macro_f1}


def strict_figures(truths: Sequence[Row], findings: Sequence[Row]) -> dict[str, float]:
    """Macro-F1 over the truth's names, mean GIoU of the pairs, and what is without a partner, per image.

    The pairing is the one of the largest total IoU among pairs that reach a half, by trying them all.
    """
    images = list(dict.fromkeys(row[1] for row in truths))
    image_of = {row[0]: row[1] for row in truths}
    right: list[str] = []
    gious, missed, surplus = [], 0, 0
    belonging = [row for row in findings if row[0] in image_of]
    for image in images:
        ours = [row for row in truths if row[1] == image]
        theirs = [row for row in belonging if image_of[row[0]] == image]
        slots: list[Row | None] = [*theirs, *[None] * len(ours)]
        best: list[tuple[Row, Row]] = []
        best_total = 0.0
        for chosen in set(permutations(slots, len(ours))):
            near = [(t, f) for t, f in zip(ours, chosen, strict=True) if f is not None and 2 * iou(t[2], f[2]) >= 1]
            total = sum(iou(t[2], f[2]) for t, f in near)
            if total > best_total:
                best, best_total = near, total
        right += [t[3] for t, f in best if t[3] == f[3]]
        gious += [giou(t[2], f[2]) for t, f in best]
        missed += len(ours) - len(best)
        surplus += len(theirs) - len(best)
    names = {row[3] for row in truths}
    f1s = [
        right.count(name) * 2 / (sum(row[3] == name for row in truths) + sum(row[3] == name for row in belonging))
        for name in names
    ]
    return {
        "strict_macro_f1": sum(f1s) / len(f1s),
        "mean_giou": sum(gious) / len(gious) if gious else float("nan"),
        "missed_per_image": missed / len(images),
        "surplus_per_image": surplus / len(images),
    }
