"""The words of `--fault`, and the values they stand for."""

import re
from typing import Any

import pytest

from together_async.cli.serve.fault_spec import FAULTS, read_rule, table
from together_async.testing import (
    ByModel,
    Chance,
    CloseAfter,
    Cut,
    Drip,
    EndlessHeaders,
    ErrorInStream,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    InTurn,
    LineEndings,
    Raw,
    Redirect,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)


class TestFaults:
    """The words of --fault, and the values they stand for."""

    @pytest.mark.parametrize(
        ("spec", "rule"),
        [
            ("status:429", Status(429)),
            ("Status:code=429", Status(429)),
            ("status:503,message='Later, please'", Status(503, message="Later, please")),
            ('status:503,message="it\'s late"', Status(503, message="it's late")),
            ("status:429,headers.retry-after=2,headers.x=y", Status(429, headers={"retry-after": "2", "x": "y"})),
            ("status:500,body=oops", Status(500, body="oops")),
            ("""status:500,body='{"error": "a, b"}'""", Status(500, body={"error": "a, b"})),
            ("headers:x-a=b,content-type=", Headers({"x-a": "b", "content-type": None})),
            ("redirect", Redirect()),
            ("redirect:http://x/?a=b,302", Redirect("http://x/?a=b", 302)),
            (r"raw:'HTTP/1.1 200 OK\r\n\r\n\xff\\'", Raw(b"HTTP/1.1 200 OK\r\n\r\n\xff\\")),
            ("stall", Stall()),
            ("stall:after_token=2,ping_every=0.5", Stall(after_token=2, ping_every=0.5)),
            ("stall:after-token=2,seconds=inf", Stall(after_token=2)),
            ("drip:5,0.5", Drip(5, 0.5)),
            ("endless-headers:10", EndlessHeaders(10)),
            ("split:every=1", Split(every=1)),
            ("split:at=3/5/9", Split(at=(3, 5, 9))),
            ("split:inside=utf-8", Split(inside="utf-8")),
            (r"line-endings:\r", LineEndings("\r")),
            ("frame:close", Frame("close")),
            ("gzip", Gzip()),
            ("wrong-length:-3", WrongLength(-3)),
            ("cut:at_byte=0,how=chunk", Cut(at_byte=0, how="chunk")),
            ("close-after:announce=true", CloseAfter(announce=True)),
            ("without-done", WithoutDone()),
            ("without_finish_reason", WithoutFinishReason()),
            ("ErrorInStream:code=503,done=yes,shape=named", ErrorInStream(code=503, done=True, shape="named")),
            ("error-in-stream:code=busy", ErrorInStream(code="busy")),
            ("garbage:data='x y'", Garbage(data=b"x y")),
            ("insert:data=x,times=3,at_byte=1", Insert(data=b"x", times=3.0, at_byte=1)),
            ("huge-line:size=10", HugeLine(size=10)),
            ("cut:after_token=3 + split:every=1", Cut(after_token=3) + Split(every=1)),
            ("10% status:429", Chance(0.1, Status(429))),
            ("0.5% gzip", Chance(0.005, Gzip())),
            ("model=a/b:c drip", ByModel({"a/b:c": Drip()})),
            ("first=2 gzip", InTurn(Gzip(), Gzip())),
            ("model=m first=1 50% gzip + drip", ByModel({"m": InTurn(Chance(0.5, Gzip() + Drip()))})),
        ],
    )
    def test_what_it_says(self, spec: str, rule: Any) -> None:
        assert read_rule(spec) == rule

    def test_every_fault_has_its_words(self) -> None:
        """The table is made of the classes: one that is added is there."""
        import together_async.testing as testing
        from together_async.testing import Fault

        public = [getattr(testing, name) for name in testing.__all__]
        faults = {value for value in public if isinstance(value, type) and issubclass(value, Fault)} - {Fault}
        assert set(FAULTS.values()) == faults
        assert [name for name, _, _ in table()] == [*FAULTS]
        assert all(text.endswith(".") for _, _, text in table())

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            ("", "no fault, expected one of status, headers, redirect"),
            ("10%", "no fault, expected one of"),
            ("nope:1", "unknown fault 'nope', expected one of status"),
            ("status", "status: needs code"),
            ("status:abc", "status: code: got 'abc', expected a whole number"),
            ("status:999", "status: code: got 999, expected an HTTP status, 200 to 599"),
            ("status:429,500,x=1,2,3", "status: "),
            ("status:429,body={x", "status: body: got '{x', expected a JSON object, or any other text"),
            ("cut:3", "cut: expected arguments by name: in_head=N, after_token=N, at_byte=N, how=reset"),
            ("cut:bar=1", "cut: no argument 'bar', expected in_head=N"),
            ("cut:how=x", "cut: how: got 'x', expected reset or close or chunk or end"),
            ("cut:after_token=1,at_byte=2", "cut: got after_token and at_byte, expected at most one of them"),
            ("gzip:1", "gzip: expected arguments by name: it has none"),
            ("gzip:x=1", "gzip: no argument 'x', expected none"),
            ("stall:seconds=-1", "stall: seconds: got -1.0, expected seconds, at least 0"),
            ("stall:ping_every=x", "stall: ping_every: got 'x', expected a number"),
            ("split:every=0", "every"),
            ("split:at=1/x", "split: at: got '1/x', expected"),
            ("close-after:announce=maybe", "close-after: announce: got 'maybe', expected true or false"),
            (r"line-endings:\n\r", r"line-endings: ending: got '\\n\\r', expected \r\n or \r or \n"),
            ("101% gzip", "101%: expected 0% to 100%"),
            ("first=0 gzip", "first=0: expected a number of requests, 1 to 100000"),
            ("first=x gzip", "first=x: expected a number of requests"),
            ("gzip drip", "expected conditions (10%, model=NAME, first=N), then a fault"),
            ("gzip +", "expected conditions"),
            ("status:429,message='x", "a quote without its other half"),
        ],
    )
    def test_what_it_can_not_say(self, spec: str, reason: str) -> None:
        """The text says what there is instead."""
        with pytest.raises(ValueError, match=re.escape(reason)):
            read_rule(spec)
