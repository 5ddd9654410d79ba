"""Text of a fixed width."""

from __future__ import annotations

from polarspike.common.tables import aligned, fitted, shortened


def test_the_first_column_gives_way() -> None:
    rows = [["site", "dB", "%"], ["features.denseblock1.denselayer1.relu2", "10.5", "3"]]
    lines = aligned(rows, 32)
    assert [len(line) for line in lines] == [32, 32]
    assert lines[1].split() == ["f.d1.denselayer1.relu2", "10.5", "3"]
    assert aligned(rows, 120)[1] == "features.denseblock1.denselayer1.relu2  10.5  3"


def test_short_names_of_different_layers_differ() -> None:
    names = [f"encoder.layers.block{i}_{j}.attention.query" for i in range(3) for j in range(3)]
    short = [shortened(name, 22) for name in names]
    assert len(set(short)) == len(names)
    assert short[5] == "e.l.b1_2.a.query"
    assert shortened(names[0], 99) == names[0]
    assert shortened("a_single_long_name", 10) == "..ong_name"


def test_long_text_is_folded_and_indented() -> None:
    lines = fitted("word " * 40, 50)
    assert max(map(len, lines)) <= 50
    assert all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == ("word " * 40).strip()
