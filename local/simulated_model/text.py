"""What the model says: Korean prose that is a function of its seed, as long as wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count, islice

from local.simulated_model import tokens

PARAGRAPHS = (
    (
        "나루는 강을 건너려는 사람들이 배를 기다리던 자리입니다. 다리가 놓이기 전까지 마을과 마을은 나루를 통해 이어졌고, "
        "장이 서는 날이면 새벽부터 봇짐을 진 사람들이 줄을 섰습니다. 사공은 물때를 읽고 사람의 수를 세어 배를 띄웠습니다."
    ),
    (
        "한강에는 송파나루, 마포나루, 광나루처럼 이름난 나루가 많았습니다. 마포에는 서해에서 올라온 새우젓 배가 닿았고, "
        "송파에는 강원도의 목재와 곡식이 모였습니다. 지금은 다리 이름에 그 흔적이 남아 있습니다."
    ),
    (
        "서버리스 구조에서는 요청이 올 때만 계산 자원이 움직입니다. 쉬는 동안에는 비용이 들지 않지만, 처음 깨어날 때 시간이 "
        "걸리므로 불러오는 모듈을 가볍게 유지하는 것이 중요합니다. 측정하지 않으면 무엇이 느린지 알 수 없습니다."
    ),
    (
        "재시도는 약이면서 독입니다. 잠깐 흔들린 서버에는 도움이 되지만, 모두가 같은 순간에 다시 두드리면 겨우 일어선 서버를 "
        "또 쓰러뜨립니다. 그래서 기다리는 시간을 무작위로 흩어 놓고, 전체 시간에 한계를 둡니다."
    ),
    (
        "김치는 배추를 소금에 절이는 데서 시작합니다. 소금이 물기를 빼고 나면 고춧가루와 마늘, 젓갈을 버무린 양념을 켜켜이 "
        "넣습니다. 온도가 낮을수록 천천히 익고, 그만큼 맛이 깊어집니다."
    ),
    (
        "제주의 돌담은 바람을 막지 않고 걸러 냅니다. 돌 사이의 틈으로 바람이 지나가기 때문에 담이 무너지지 않습니다. 막는 것과 "
        "흘려보내는 것 사이의 균형은 다른 일에서도 배울 만합니다."
    ),
    (
        "회의를 짧게 끝내려면 결정할 것을 먼저 적어 두어야 합니다. 참석자가 읽고 들어오면 설명하는 시간이 줄고, 남은 시간은 "
        "의견이 다른 부분에 쓸 수 있습니다. 끝난 뒤에는 누가 언제까지 무엇을 할지 한 줄로 남기십시오."
    ),
    (
        "비용을 지키는 가장 쉬운 방법은 쓰기 전에 묻는 것입니다. 다 쓰고 나서 합계를 내면 이미 늦습니다. 한도를 미리 떼어 두고, "
        "실제로 쓴 만큼만 정산한 다음 나머지를 돌려주면 넘칠 일이 없습니다."
    ),
    (
        "부산의 아침은 자갈치 시장에서 시작됩니다. 경매가 끝난 생선이 좌판에 오르고, 첫 버스를 타고 온 손님들이 흥정을 합니다. "
        "해가 오르면 영도다리 쪽에서 갈매기가 몰려옵니다."
    ),
    (
        "한글은 소리를 내는 자리를 본떠 만든 글자입니다. 닿소리는 혀와 입술의 모양을, 홀소리는 하늘과 땅과 사람을 나타냅니다. "
        "스물네 글자로 만 개가 넘는 음절을 적을 수 있습니다."
    ),
    (
        "좋은 오류 문장은 무슨 일이 있었는지, 무엇을 하면 되는지를 함께 말합니다. 사용자가 고칠 수 없는 일이라면 언제 다시 "
        "시도하면 되는지 알려 주십시오. 내부의 사정은 기록에 남기고, 밖에는 번호 하나만 보여 주면 충분합니다."
    ),
    (
        "설악산의 단풍은 대청봉에서 시작해 하루에 오십 미터쯤 내려옵니다. 일교차가 클수록 빛깔이 선명해지고, 비가 잦으면 "
        "일찍 떨어집니다. 구월 말에 올라가면 산이 물드는 순서를 눈으로 볼 수 있습니다."
    ),
)

THOUGHTS = (
    "먼저 질문이 무엇을 묻는지 나누어 보겠습니다. 조건을 하나씩 확인하고, 빠진 것이 있는지 살핍니다. 가능한 답을 두 가지로 "
    "좁힌 다음 반례를 찾아봅니다. 반례가 없으니 앞의 답이 더 낫습니다. 이제 읽기 쉬운 순서로 정리하면 됩니다. "
)


def digest(*parts: object) -> int:
    """Return a large number that depends on the parts only; the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(tokens.compact_json(parts).encode()).digest()[:12], "big")


def prose(seed: int, length: int, lead: str = "") -> list[str]:
    """Return a text of exactly `length` tokens, in pieces, that ends with a full stop and starts with `lead`.

    An opening sentence carries a number of its own for every seed, so that answers which get crossed are noticed.
    """
    if length <= 0:
        return []
    return [*islice(_endless(seed, lead), length - 1), "."]


def thoughts(seed: int, length: int) -> list[str]:
    """Return `length` tokens of thinking, in pieces."""
    start = digest(seed, "thoughts") % 3
    return list(islice((piece for _ in count() for piece in tokens.split(THOUGHTS)), start, start + length))


def _endless(seed: int, lead: str) -> Iterator[str]:
    yield from tokens.split(f"{lead}문의 번호 {seed % 10**7}번에 답을 드립니다. ".rstrip())
    last = -1
    for index in count():
        choice = digest(seed, index) % len(PARAGRAPHS)
        choice = (choice + 1) % len(PARAGRAPHS) if choice == last else choice
        last = choice
        separator = " " if index == 0 else "\n\n"
        yield from tokens.split(separator + PARAGRAPHS[choice])
