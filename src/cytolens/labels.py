"""Label sets: the only place where a label's name and its index meet.

A `LabelSet` is an ordered list of names with aliases (NGS = SNE = segmented neutrophil), parents
(band neutrophil → neutrophil → leukocyte) and attribute schemas. The shipped taxonomy
(``labels/blood.toml``) says once, for every data set, what a name means; a data set keeps its own
names and finds its way to another's through that taxonomy.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cytolens.problems import LabelError, did_you_mean, listing

Role = Literal["leukocyte", "erythroblast", "erythrocyte", "platelet", "lysed", "artefact", "part"]
_TAXONOMY_FILE = Path(__file__).parent / "labels" / "blood.toml"


def folded(text: str) -> str:
    """A name as it is compared: case, separators, surrounding blanks and how accents are stored do not matter."""
    # Some file systems hand out "é" as "e" and an accent, so names taken from folders need one form.
    composed = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\s_\-]+", " ", composed).strip()


@dataclass(frozen=True, slots=True)
class AttributeSchema:
    """One attribute of a cell: its schema, name, values, and whether the values have an order."""

    schema: str
    name: str
    values: tuple[str, ...]
    ordered: bool = False

    @property
    def column(self) -> str:
        """The attribute's column in `Cells`, "<schema>.<name>"."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Ordered label names, their aliases, parents, roles and attributes.

    Attributes:
        names: the labels, in index order. Each is unique, also when case is ignored.
        parents: child name → parent name; both are in `names`.
        aliases: other spellings → name.
        roles: name → what the differential counts it as; absent where unknown.
        reportable: names deep enough to be an answer.
        attributes: the attribute schemas that cells of this set carry.

    Raises:
        LabelError: names repeat, a parent is missing, parents form a ring, an alias is ambiguous, a role is
            unknown, a role or reportable name is not of a label, or an attribute or one of its values repeats.
    """

    names: tuple[str, ...]
    parents: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    reportable: frozenset[str] = frozenset()
    attributes: tuple[AttributeSchema, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        seen: dict[str, str] = {}
        for name in self.names:
            if not name.strip():
                raise LabelError("a label has an empty name; every label needs one")
            if (key := folded(name)) in seen:
                raise LabelError(f'the labels "{seen[key]}" and "{name}" are the same name; keep one')
            seen[key] = name
        for child, parent in self.parents.items():
            if child not in self.names or parent not in self.names:
                raise LabelError(f'parent of "{child}" is "{parent}", but both must be among: {listing(self.names)}')
        for name in self.names:
            trail = [name]
            while (parent := self.parents.get(trail[-1])) is not None:
                if parent in trail:
                    raise LabelError(f"labels are their own ancestors: {' → '.join([*trail, parent])}")
                trail.append(parent)
        for alias, name in self.aliases.items():
            if name not in self.names:
                raise LabelError(f'the alias "{alias}" stands for "{name}", which is not a label')
            if self._by_fold.get(folded(alias)) not in (None, name):
                raise LabelError(f'the alias "{alias}" of "{name}" is also another label or alias')
        if strangers := [name for name in (*self.roles, *sorted(self.reportable)) if name not in self.names]:
            raise LabelError(f"roles or reportable names that are not labels: {listing(strangers)}")
        for name, role in self.roles.items():
            if role not in get_args(Role):
                raise LabelError(f'the role of "{name}" is "{role}"; allowed: {listing(get_args(Role))}')
        columns = [attribute.column for attribute in self.attributes]
        for attribute in self.attributes:
            if columns.count(attribute.column) > 1 or len(set(attribute.values)) < len(attribute.values):
                raise LabelError(f'the attribute "{attribute.column}" or one of its values is given twice; keep one')

    # -- identity -------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which `from_dict` makes the same label set."""
        return {
            "names": list(self.names),
            "parents": dict(self.parents),
            "aliases": dict(self.aliases),
            "roles": dict(self.roles),
            "reportable": sorted(self.reportable),
            "attributes": [
                {"schema": a.schema, "name": a.name, "values": list(a.values), "ordered": a.ordered}
                for a in self.attributes
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The label set that `to_dict` described."""
        return cls(
            names=tuple(data["names"]),
            parents=dict(data.get("parents", {})),
            aliases=dict(data.get("aliases", {})),
            roles=dict(data.get("roles", {})),
            reportable=frozenset(data.get("reportable", ())),
            attributes=tuple(
                AttributeSchema(a["schema"], a["name"], tuple(a["values"]), bool(a.get("ordered")))
                for a in data.get("attributes", ())
            ),
        )

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when anything of the label set changes."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSet) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def __repr__(self) -> str:
        return f"LabelSet({listing(self.names, 6)})"

    # -- names ----------------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _by_fold(self) -> dict[str, str]:
        table: dict[str, str] = {}
        for spelling, name in [*self.aliases.items(), *((name, name) for name in self.names)]:
            table[folded(spelling)] = name
        for spelling, name in list(table.items()):
            # A plural is accepted where it cannot be mistaken for a code ("SS", "MM").
            if len(spelling) > 4:
                table.setdefault(spelling + "s", name)
        return table

    def index(self, name: str) -> int:
        """The index of a name in `names`.

        Raises:
            LabelError: the set has no such name (aliases are not looked up here).
        """
        try:
            return self._positions[name]
        except KeyError:
            raise LabelError(self._unknown(name)) from None

    def resolve(self, text: str) -> str | None:
        """The label meant by a name or alias, or None. Exact spelling wins over folded spelling."""
        if text in self._positions:
            return text
        return self._by_fold.get(folded(text))

    def require(self, text: str) -> str:
        """The label meant by a name or alias.

        Raises:
            LabelError: nothing of that name; the message lists what there is.
        """
        name = self.resolve(text)
        if name is None:
            raise LabelError(self._unknown(text))
        return name

    def _unknown(self, text: str) -> str:
        hint = did_you_mean(text, [*self.names, *self.aliases])
        return f'unknown label "{text}". {hint + " " if hint else ""}Labels here: {listing(self.names, 30)}'

    # -- the tree -------------------------------------------------------------------------------

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The parents of a label, nearest first, without the label itself."""
        self.index(name)
        trail: list[str] = []
        while (parent := self.parents.get(trail[-1] if trail else name)) is not None:
            trail.append(parent)
        return tuple(trail)

    def is_a(self, name: str, ancestor: str) -> bool:
        """Whether `name` is `ancestor` or a kind of it."""
        return name == ancestor or ancestor in self.ancestors(name)

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The labels that nothing is a kind of, in index order; probabilities are over these."""
        inner = set(self.parents.values())
        return tuple(name for name in self.names if name not in inner)

    @cached_property
    def leaf_matrix(self) -> NDArray[np.bool_]:
        """Which leaves each label covers, shape (number of labels, number of leaves)."""
        return np.array([[self.is_a(leaf, name) for leaf in self.leaves] for name in self.names], bool).reshape(
            len(self.names), len(self.leaves)
        )

    def leaves_of(self, name: str) -> tuple[str, ...]:
        """The leaves that a label covers; a leaf covers itself."""
        row = self.leaf_matrix[self.index(name)]
        return tuple(leaf for leaf, inside in zip(self.leaves, row, strict=True) if inside)

    def flat(self) -> LabelSet:
        """The same names without parents: for data whose labels exclude each other, whatever they mean elsewhere.

        In Cytologia "LY" is given to lymphocytes of no other kind, so it is a kind of its own beside "LLC".
        """
        roles = {name: role for name in self.names if (role := self.role(name)) is not None}
        return replace(self, parents={}, roles=roles, reportable=frozenset(self.names))

    def joined(self, other: LabelSet) -> LabelSet:
        """These labels followed by those of another set that have no word here; they stand outside all lines."""
        more = [name for name in other.names if self.resolve(name) is None]
        roles = {name: role for name in more if (role := other.role(name)) is not None}
        new = {"names": (*self.names, *more), "roles": {**self.roles, **roles}}
        return replace(self, **new, reportable=self.reportable | frozenset(more))

    def role(self, name: str) -> Role | None:
        """What the differential counts a label as, or None where nobody said."""
        for candidate in (name, *self.ancestors(name)):
            if candidate in self.roles:
                return self.roles[candidate]
        return None

    # -- other label sets -----------------------------------------------------------------------

    def mapping_to(self, other: LabelSet) -> dict[str, str | None]:
        """For each label here the label of `other` that says the same or the nearest wider thing.

        A label is looked up in `other` by its name, then by its aliases, then by what the shipped taxonomy
        knows it as, then by its ancestors (here and in the taxonomy). None: `other` has no word for it.
        """
        return {name: self._counterpart(name, other) for name in self.names}

    def _counterpart(self, name: str, other: LabelSet) -> str | None:
        known = taxonomy()
        for step in (name, *self.ancestors(name)):
            for spelling in self._spellings(step):
                if (direct := other.resolve(spelling)) is not None:
                    return direct
            concept = self._concepts[step]
            if concept is None:
                continue
            for wider in (concept, *known.ancestors(concept)):
                if (found := other._by_concept.get(wider)) is not None:
                    return found
        return None

    def _spellings(self, name: str) -> list[str]:
        """A label's name, then its aliases (sorted: equal label sets answer equally)."""
        return [name, *sorted(alias for alias, target in self.aliases.items() if target == name)]

    @cached_property
    def _concepts(self) -> dict[str, str | None]:
        """What the taxonomy knows each label as, by its name or else by an alias."""
        known = taxonomy()
        concepts = ((name, map(known.resolve, self._spellings(name))) for name in self.names)
        return {name: next((c for c in candidates if c is not None), None) for name, candidates in concepts}

    @cached_property
    def _by_concept(self) -> dict[str, str]:
        """The first label here of each concept of the taxonomy."""
        return {concept: name for name, concept in reversed(self._concepts.items()) if concept is not None}

    @classmethod
    def of(cls, names: Iterable[str], attributes: tuple[AttributeSchema, ...] = ()) -> Self:
        """A label set with exactly these names, its tree and aliases taken from the taxonomy.

        A name that the taxonomy does not know becomes a label without parent, alias or role.
        """
        names = tuple(names)
        known = taxonomy()
        concepts = {name: known.resolve(name) for name in names}
        owner: dict[str, str] = {}
        for name in names:
            concept = concepts[name]
            if concept is not None:
                owner.setdefault(concept, name)
        parents: dict[str, str] = {}
        aliases: dict[str, str] = {}
        roles: dict[str, Role] = {}
        taken = {folded(name) for name in names}
        for name in names:
            concept = concepts[name]
            if concept is None:
                continue
            role = known.role(concept)
            if role is not None:
                roles[name] = role
            for wider in known.ancestors(concept):
                if wider in owner:
                    parents[name] = owner[wider]
                    break
            if owner[concept] != name:  # two names for one concept: siblings that stay apart
                continue
            for alias in (concept, *(a for a, target in known.aliases.items() if target == concept)):
                if folded(alias) not in taken:
                    taken.add(folded(alias))
                    aliases[alias] = name
        reportable = frozenset(name for name in names if (c := concepts[name]) is None or c in known.reportable)
        return cls(names, parents, aliases, roles, reportable, attributes)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> LabelSet:
        """A label set from ``[[label]]`` tables as in ``labels/blood.toml``.

        Raises:
            LabelError: a table has no name or an unknown key, an alias stands for two labels, or the names do
                not make a tree.
        """
        rows = list(rows)
        aliases: dict[str, str] = {}
        for row in rows:
            _check_row(row)
            for alias in row.get("aliases", ()):
                if folded(alias) == folded(row["name"]):
                    continue
                if (other := aliases.setdefault(alias, row["name"])) != row["name"]:
                    raise LabelError(f'the alias "{alias}" stands for "{other}" and for "{row["name"]}"; keep one')
        return cls(
            names=tuple(row["name"] for row in rows),
            parents={row["name"]: row["parent"] for row in rows if "parent" in row},
            aliases=aliases,
            roles={row["name"]: row["role"] for row in rows if "role" in row},
            reportable=frozenset(row["name"] for row in rows if row.get("report")),
        )

    @classmethod
    def shipped(cls, name: str = "blood") -> LabelSet:
        """The shipped taxonomy ("blood"), or one of the published label sets it lists.

        Raises:
            LabelError: there is no set of that name.
        """
        if name == "blood":
            return taxonomy()
        sets: dict[str, list[str]] = _taxonomy_data()["sets"]
        if name not in sets:
            raise LabelError(f'no shipped label set "{name}"; there are: blood, {", ".join(sets)}')
        return cls.of(sets[name])


_ROW_KEYS = {"name": str, "parent": str, "role": str, "report": bool, "aliases": list}


def _check_row(row: Mapping[str, Any]) -> None:
    where = f'the [[label]] table "{row.get("name", "")}"'
    if "name" not in row:
        raise LabelError(f"every [[label]] table needs a name; got {dict(row)}")
    for key, value in row.items():
        if key not in _ROW_KEYS:
            hint = did_you_mean(key, _ROW_KEYS)
            raise LabelError(
                f'{where} has the unknown key "{key}". {hint + " " if hint else ""}Keys: {listing(_ROW_KEYS)}'
            )
        if not isinstance(value, _ROW_KEYS[key]):
            raise LabelError(f"{where}: {key} is {value!r}; wanted: {_ROW_KEYS[key].__name__}")


@cache
def _taxonomy_data() -> dict[str, Any]:
    with _TAXONOMY_FILE.open("rb") as stream:
        return tomllib.load(stream)


@cache
def taxonomy() -> LabelSet:
    """The shipped taxonomy of blood cells, with canonical names."""
    return LabelSet.from_rows(_taxonomy_data()["label"])


@cache
def attribute_schema(name: str) -> tuple[AttributeSchema, ...]:
    """A shipped attribute schema, such as "wbcatt".

    Raises:
        LabelError: there is no schema of that name.
    """
    schemas = _taxonomy_data()["attributes"]
    if name not in schemas:
        raise LabelError(f'no attribute schema "{name}"; there are: {", ".join(schemas)}')
    return tuple(
        AttributeSchema(name, attribute, tuple(body["values"]), bool(body.get("ordered")))
        for attribute, body in schemas[name].items()
    )
