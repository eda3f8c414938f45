"""The Chinese notebook says what the English one says: the same cells, code, outputs, shapes, numbers and links.

Its typography is also that of README_zh.md; that both READMEs show the same is the concern of test_readme.py.
"""
import re

import pytest
from cells import CHINESE, ENGLISH, read
from save_notebooks import fingerprint

english, chinese = read(ENGLISH).cells, read(CHINESE).cells
pairs = [(there, here) for there, here in zip(english, chinese) if here.cell_type == "markdown"]
for (_, above), (_, below) in zip(pairs, pairs[1:]):  # a caption of the output between two texts goes with the first
    caption, below.source = re.fullmatch(r"((?:>[^\n]*\n)*)(.*)", below.source, re.DOTALL).groups()
    above.source = f"{above.source}\n\n{caption}"
prose = pytest.mark.parametrize("there, here", pairs, ids=[here.id for _, here in pairs])
HAN = r"[\u3400-\u9fff]"
TERMS = {
    "词元": "token", "分词器": "tokenizer", "词表": "vocabulary", "嵌入": "embedding", "检查点": "checkpoint",
    "权重": "weight", "张量": "tensor", "形状": "shape", "归一化": "normalization", "残差连接": "residual connection",
    "前馈网络": "feed-forward network", "注意力头": "attention head", "自注意力": "self-attention", "得分": "score",
    "多头注意力": "multi-head attention", "分组查询注意力": "grouped-query attention", "因果掩码": "causal mask",
    "旋转位置编码": "rotary position embedding", "概率": "probability", "自回归": "autoregressive",
    "采样": "sampling", "温度": "temperature", "贪心": "greedy", "KV缓存": "KV cache", "损失": "loss",
    "消融": "ablation", "频率": "frequency", "点积": "dot product", "归纳头": "induction head",
    "注意力汇": "attention sink", "上下文": "context", "维度": "dimension"}


def plain(text):
    """`text` without pictures, folded answers, code spans, formulas and link addresses: what a person reads aloud."""
    for pattern in (r"(?s)```.*?```", r"<[^>]+>", r"`[^`]*`", r"\$+[^$]+\$+", r"\]\([^)]*\)"):
        text = re.sub(pattern, "\N{OBJECT REPLACEMENT CHARACTER}", text)
    return text


def test_same_cells():
    """Ids, kinds and order are the same; code cells are the same in everything: source, tags, outputs, counts."""
    assert [(cell.id, cell.cell_type) for cell in english] == [(cell.id, cell.cell_type) for cell in chinese]
    for there, here in zip(english, chinese):
        assert here.cell_type == "markdown" or here == there, f"cell {here.id}: run tests/save_notebooks.py"


@prose
def test_translated(there, here):
    """The Chinese text was written for the English text as it is now, and is Chinese."""
    assert here.metadata.get("english") == fingerprint(there.source), "mend it, then save_notebooks.py --translated"
    assert re.search(HAN, here.source)


@prose
@pytest.mark.parametrize("pattern", [
    r"(?m)^#+ ", r'<img src="[^"]*"', r'width="[^"]*"', r"(?s)```.*?```", r"`[^`\n]+`", r"\$+[^$]+\$+",
    r"\]\((?!llama3_from_scratch|#)[^)]*\)", r"</?details>", r"(?m)^\|"])
def test_same_parts(there, here, pattern):
    """Headings, pictures, answers, code spans with their shapes, formulas, links and table rows are the same."""
    assert sorted(re.findall(pattern, here.source)) == sorted(re.findall(pattern, there.source))


@prose
def test_same_numbers(there, here):
    """Every number written in digits in one language stands in digits in the other."""
    numbers = [set(re.findall(r"\d+(?:[.,]\d+)*", plain(cell.source))) for cell in (there, here)]
    assert numbers[0] == numbers[1]


def held_to_typography(text):
    """No space between Chinese and Latin, full-width punctuation after Chinese, the project's terms."""
    text = plain(re.sub(r"(?m)^(#+|\d\.|[-*|]|\s)+", "", text))
    assert not re.search(rf"{HAN} +[A-Za-z0-9]|[A-Za-z0-9] +{HAN}", text), "space between Chinese and Latin"
    assert not re.search(rf"{HAN}[,.:;!?()]|[,;!?(]{HAN}", text), "half-width punctuation"
    for wrong in ("您", "令牌", "标记化", "一次性", "但只", "残差连接流", "检查站", "键值缓存", "分组注意力", "头发问"):
        assert wrong not in text, wrong
    assert not re.search(rf"(?<![*\\])\*(?![* ])[^*\n]*{HAN}[^*\n]*\*(?!\*)", text), "Han in italics"


@prose
def test_chinese_typography(there, here):
    """Each cell is held to it."""
    held_to_typography(here.source)


@prose
def test_renders(there, here):
    """Bold and code are closed where CommonMark closes them: `**甲（乙）**丙` is not bold."""
    text = re.sub(r"(?s)```.*?```", "", here.source)
    assert all(line.count("`") % 2 == 0 for line in text.splitlines()), "a code span over two lines, or none"
    spans = re.findall(r"`([^`\n]+)`", text)
    assert not [span for span in spans if span.strip() and span[0] == span[-1] == " "], "its spaces are stripped"
    for paragraph in re.sub(r"`[^`\n]+`", "x", text).split("\n"):
        parts = paragraph.split("**")
        assert len(parts) % 2, paragraph
        for before, bold, behind in zip(parts[::2], parts[1::2], parts[2::2]):
            assert not (re.search(r"[^\w\s]$", bold) and re.match(r"\w", behind)), f"**{bold}** is not closed"
            assert not (re.match(r"[^\w\s]", bold) and re.search(r"\w$", before)), f"**{bold}** is not opened"


@pytest.mark.parametrize("term, original", TERMS.items())
def test_introduced(term, original):
    """The English stands behind the Chinese in one of the first two cells that mention the term."""
    mention = [plain(here.source) for _, here in pairs if term in plain(here.source)]
    assert re.search(rf"{term}\**（[^）]*{original}", "\n".join(mention[:2]), re.IGNORECASE), mention[:2]


def test_chinese_typography_of_the_readme():
    """README_zh.md is held to it, and has bold where English has italics."""
    held_to_typography((CHINESE.parent / "README_zh.md").read_text(encoding="utf-8"))


def test_linked():
    """Each notebook's first cell links to the other."""
    assert f"]({CHINESE.name})" in english[0].source and f"]({ENGLISH.name})" in chinese[0].source
