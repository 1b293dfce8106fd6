"""A bench: one core under a script, so that a whole attack is one line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nsllm.consensus import core
from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.core import State, Turn
from nsllm.consensus.effects import Accuse, BuildValue, Decide, Effect, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.evidence import Evidence, offence_of
from nsllm.consensus.inputs import (
    CertificateReceived,
    Input,
    ProposalReceived,
    Start,
    TimedOut,
    ValueBuilt,
    VoteReceived,
)
from nsllm.consensus.vote import Vote, VoteKind
from nsllm.ids import Digest, Height, Round
from nsllm.simulations.mutants.made import make_block, make_keys, make_set, sign_proposal, sign_vote


class Bench:
    """Signs what its core asks to have signed and feeds that back, as the driver does.

    Script: steps separated by `;`: `start`, `prop ROUND VALUE [VALID_ROUND]` (`prop!`: the application refuses it),
    `built ROUND VALUE`, `pv WHO ROUND VALUE`, `pc WHO ROUND VALUE`, `polka ROUND VALUE WHO...`, `to STEP ROUND`.
    WHO are validators' numbers, as in `123`; values are letters or `nil`; `B@1A` is B under a lock on A of round 1.

    Args:
        count: validators.
        me: number of the one under test.
        height: that is decided.
    """

    def __init__(self, count: int = 4, me: int = 0, height: int = 1) -> None:
        self.keys = make_keys(count)
        self.validators = make_set(self.keys)
        self.key = self.keys[me]
        self.height = height
        self.step: Callable[[State, Input], Turn] = core.step
        self.state = self.fresh()
        self.blocks: dict[str, Block] = {
            name: make_block(self.validators, height, proposer=self.keys[0].address, salt=salt)
            for salt, name in enumerate("ABCDEFGH")
        }
        self.names: dict[Digest | None, str] = {None: "nil"}
        self.names.update({block.header.id(): name for name, block in self.blocks.items()})
        self.decided: DecidedBlock | None = None
        self.votes: list[Vote] = []
        """Its own, in order."""
        self.evidence: list[Evidence] = []

    def fresh(self) -> State:
        """The state at the height's begin."""
        return State(validators=self.validators, me=self.key.address, height=Height(self.height))

    def value(self, name: str) -> Digest | None:
        """What a vote for `name` carries."""
        return None if name == "nil" else self.blocks[name].header.id()

    def vote(self, who: str, kind: VoteKind, round_: int, name: str) -> Vote:
        """A vote of validator number `who`."""
        name, _, held = name.partition("@")
        lock = (int(held[:-1]), self.blocks[held[-1]].header.id()) if held else None
        return sign_vote(self.keys[int(who)], kind, self.value(name), round_=round_, height=self.height, lock=lock)

    def run(self, script: str) -> list[str]:
        """Feed the script; what the last step made the core ask for, in words."""
        said: list[str] = []
        for line in filter(None, (part.strip() for part in script.split(";"))):
            said = [text for event in self.events(line) for text in self.feed(event)]
        return said

    def feed(self, event: Input) -> list[str]:
        """One input, and what follows from it; in words."""
        queue, texts = deque([event]), list[str]()
        while queue:
            self.state, effects = self.step(self.state, queue.popleft())
            for effect in effects:
                texts.append(self._text(effect))
                match effect:
                    case SignVote(kind=kind, round=round_, value=value, lock=lock, valid_round=proved):
                        at = self.height
                        vote = sign_vote(self.key, kind, value, round_=round_, height=at, lock=lock, valid_round=proved)
                        self.votes.append(vote)
                        queue.append(VoteReceived(vote=vote))
                    case SignProposal(round=round_, block=block, valid_round=valid_round, polka=polka):
                        proposal = sign_proposal(self.key, block, round_=round_, valid_round=valid_round, polka=polka)
                        queue.append(ProposalReceived(proposal=proposal, valid=True))
                    case Decide(decided=decided):
                        self.decided = decided
                    case Accuse(evidence=evidence):
                        self.evidence.append(evidence)
                    case _:
                        pass
        return texts

    def events(self, line: str) -> list[Input]:  # noqa: PLR0911 - one a word
        """What a step of a script feeds."""
        match line.split():
            case ["start"]:
                return [Start()]
            case ["prop" | "prop!" as verb, round_, name, *rest]:
                proposer = self.validators.proposer(self.height, int(round_))
                key = next(key for key in self.keys if key.address == proposer)
                valid_round = int(rest[0]) if rest else None
                proposal = sign_proposal(key, self.blocks[name], round_=int(round_), valid_round=valid_round)
                return [ProposalReceived(proposal=proposal, valid=verb == "prop")]
            case ["built", round_, name]:
                return [ValueBuilt(round=Round(int(round_)), block=self.blocks[name])]
            case ["pv", who, round_, name]:
                return [VoteReceived(vote=self.vote(w, "prevote", int(round_), name)) for w in who]
            case ["pc", who, round_, name]:
                return [VoteReceived(vote=self.vote(w, "precommit", int(round_), name)) for w in who]
            case ["polka", round_, name, who]:
                return [CertificateReceived(votes=tuple(self.vote(w, "prevote", int(round_), name) for w in who))]
            case ["to", "propose" | "prevote" | "precommit" as step, round_]:
                return [TimedOut(step=step, round=Round(int(round_)))]
            case _:
                raise ValueError(line)

    def _text(self, effect: Effect) -> str:  # noqa: PLR0911 - one an effect
        match effect:
            case SignVote(kind=kind, round=round_, value=value):
                return f"{kind} {round_} {self.names[value]}"
            case SignProposal(round=round_, block=block, valid_round=valid_round, polka=polka):
                proof = "" if valid_round is None else f" after {valid_round} by {len(polka)}"
                return f"propose {round_} {self.names[block.header.id()]}{proof}"
            case Schedule(step=step, round=round_):
                return f"timer {step} {round_}"
            case BuildValue(round=round_):
                return f"build {round_}"
            case Relay(certificate=certificate):
                return f"relay {type(certificate).__name__} {certificate.votes[0].round} of {len(certificate.votes)}"
            case Accuse(evidence=evidence):
                return f"accuse {offence_of(evidence).kind}"
            case Decide(decided=decided):
                return f"decide {decided.certificate.round} {self.names[decided.block.header.id()]}"
