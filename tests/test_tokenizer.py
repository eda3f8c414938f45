"""The notebook's tokenizer is Meta's, its hand-written BPE is tiktoken's, and SmolLM2's is that of its GGUF file."""
import pytest
import regex
from cells import load_tutorial, smollm2_folder
from gguf import GGUFReader
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

tutorial = load_tutorial()
META, TOKENIZER = MetaTokenizer.get_instance(), tutorial.load_tokenizer(tutorial.packaged)

TEXTS = {
    "the prompt": tutorial.prompt,
    "empty": "",
    "English": "Don't panic! She'll say: \"It's 5 o'clock, isn't it?\" DON'T SHE'LL (naïve café) e.g. hitchhikers",
    "code": "def f(x):\n\tif x != 3.14:\n        return {'a': [x**2 for x in range(10)]}  # done\n\n\nprint(f(1))\r\n",
    "digits": "0 42 1234567890 1,000,000 3.14159 00007 2024-04-18 x1y22z333 ½ ٣٤",
    "spaces": "  a   b" + " " * 100 + "c \t d" + "\t" * 7 + "e   ",
    "newlines": "\n\na\n \n  b\r\n\r\nc \n" + "\n" * 50,
    "Chinese": "生命、宇宙以及一切的终极答案是四十二。你好，世界！",
    "Arabic": "الجواب على السؤال الأهم عن الحياة، والكون، وكل شيء هو ٤٢",
    "Vietnamese": "Câu trả lời cho câu hỏi cuối cùng về cuộc sống, vũ trụ và vạn vật là: những người Việt Nam",
    "other scripts": "जीवन का उत्तर हैं ชีวิต ответ на вопрос απάντηση שאלה 생명 いのち",
    "emoji": "🦙 llamas 🦙🏽 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️",
    "special names": "<|begin_of_text|>a<|eot_id|> <|start_header_id|>user<|end_header_id|>\n\n<|python_tag|>",
    "control characters": "\x00\x01\x7f\u200b\ufeff\ufffd\u00a0\U0010ffff e\u0301",
}


def test_special_tokens_are_metas():
    """All 256 names with their ids, 128000 to 128255, in one vocabulary of 128,256."""
    assert {name: TOKENIZER.encode_single_token(name) for name in tutorial.special} == META.special_tokens
    assert sorted(META.special_tokens.values()) == [*range(128000, 128256)]
    assert TOKENIZER.n_vocab == META.n_words == 128256 and len(TOKENIZER.special_tokens_set) == 256


@pytest.fixture
def ranks(monkeypatch):
    """Bytes to rank, also set as the global `ranks` that the notebook's `bpe` reads."""
    ranks = tutorial.read_ranks(tutorial.packaged)
    monkeypatch.setattr(tutorial, "ranks", ranks, raising=False)
    return ranks


@pytest.mark.parametrize("name", TEXTS)
def test_ids_are_metas(ranks, name):
    """Meta's `encode`, the tutorial's, and its BPE by hand give the same ids, which are the text again."""
    ids = META.encode(TEXTS[name], bos=True, eos=False)
    assert tutorial.encode(TOKENIZER, TEXTS[name]) == ids
    pieces = regex.findall(tutorial.pattern, TEXTS[name])
    assert [token for piece in pieces for token in tutorial.bpe(piece.encode())] == ids[1:]
    assert TOKENIZER.decode(ids[1:]) == TEXTS[name]


def test_every_piece_is_one_token(ranks):
    """All 128,000; 588 of them no merging of pairs makes, so `bpe` has to look a piece up whole first."""
    assert all(tutorial.bpe(piece) == [rank] for piece, rank in ranks.items())


@pytest.fixture(scope="module")
def smol_tokenizers(tmp_path_factory):
    """The notebook's tokenizer for SmolLM2, the one of the GGUF file, and the file's id for each of the former's.

    The file says BPE (`tokenizer.ggml.tokens`, `.merges`) with the pre-tokenizer `smollm`. In llama.cpp
    (`llama-vocab.cpp`) that is: digits one by one, then GPT-2's pattern.
    """
    fields = GGUFReader(tutorial.find_gguf(tmp_path_factory.mktemp("gguf"))).fields
    texts, kinds, merges, pre = (fields[f"tokenizer.ggml.{key}"].contents()
                                 for key in ("tokens", "token_type", "merges", "pre"))
    assert pre == "smollm"
    theirs = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, [tuple(pair.split()) for pair in merges]))
    theirs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                    pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ours = tutorial.load_llama(smollm2_folder()).tokenizer
    return ours, theirs, [i for i, kind in enumerate(kinds) if kind == 1]


@pytest.mark.slow
@pytest.mark.parametrize("text", [
    tutorial.prose, "In 1969, 400,000 people worked 8 hours a day for 3.5 years.", TEXTS["English"], TEXTS["Chinese"],
    TEXTS["emoji"], "f(x) = [y != z->w];\n}", "One line.\nAnother line.\n", "two  spaces   three"])
def test_smollm2_reads_as_its_file_says(smol_tokenizers, text):
    """Prose, numbers, code, single line breaks: the ids of the GGUF file's own tokenizer."""
    ours, theirs, ids = smol_tokenizers
    assert [ids[token] for token in ours.encode(text)] == theirs.encode(text).ids
