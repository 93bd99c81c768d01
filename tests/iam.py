"""What the template's roles allow, decided as IAM decides it (IAM user guide, "Policy evaluation logic" and "Multivalued
context keys"), because the emulator does not look at conditions.

It knows what the template uses. Anything else is an error and not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

from naru.attributes import from_item

REGION, ACCOUNT = "ap-northeast-2", "123456789012"
_PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::StackName": "naru",
    "AWS::URLSuffix": "amazonaws.com",
}
_ARNS = {
    "AWS::DynamoDB::Table": f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{{}}",
    "AWS::S3::Bucket": "arn:aws:s3:::{}",
    "AWS::SQS::Queue": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{{}}",
    "AWS::SNS::Topic": f"arn:aws:sns:{REGION}:{ACCOUNT}:{{}}",
    "AWS::SecretsManager::Secret": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{{}}-a1b2c3",
    "AWS::Lambda::Function": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{{}}",
    "AWS::Serverless::Function": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{{}}",
}
_REF_IS_ARN = {"AWS::SNS::Topic", "AWS::SecretsManager::Secret"}
_LOGS = {
    "Effect": "Allow",
    "Action": ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
    "Resource": "*",
}
_MANAGED: dict[str, list[dict[str, Any]]] = {
    "AWSLambdaBasicExecutionRole": [_LOGS],
    "AWSLambdaSQSQueueExecutionRole": [
        _LOGS,
        {
            "Effect": "Allow",
            "Action": ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"],
            "Resource": "*",
        },
    ],
}


@dataclass(frozen=True)
class Call:
    """One thing that somebody wants to do. ``context`` holds condition keys with all their values."""

    action: str
    resource: str
    context: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Role:
    """A function's role."""

    def __init__(self, name: str, statements: Sequence[Mapping[str, Any]]) -> None:
        self.name = name
        self.statements = statements

    def allows(self, call: Call) -> bool:
        """Whether a statement allows it and none denies it."""
        effects = {statement["Effect"] for statement in self.statements if _applies(statement, call)}
        return effects == {"Allow"}


def roles(template: Any) -> dict[str, Role]:
    """Of the transformed template, by the logical name of the function."""
    resolve = _Resolver(template.source.get("Parameters", {}), template.resources)
    found = {}
    for function, properties in template.of_type("AWS::Lambda::Function").items():
        role = template.resources[properties["Role"]["Fn::GetAtt"][0]]["Properties"]
        statements: list[Any] = []
        for policy in role.get("Policies", []):
            statements += map(resolve, policy["PolicyDocument"]["Statement"])
        for arn in role.get("ManagedPolicyArns", []):
            statements += _MANAGED[str(resolve(arn)).rpartition("/")[2]]
        found[function] = Role(function, [each for each in statements if each is not None])
    return found


# ── Statements ─────────────────────────────────────────────────────────────────────────────────────────────


def _applies(statement: Mapping[str, Any], call: Call) -> bool:
    if unknown := statement.keys() - {"Sid", "Effect", "Action", "Resource", "Condition"}:
        raise ValueError(f"not understood: {unknown}")
    return (
        any(_like(pattern.lower(), call.action.lower()) for pattern in _listed(statement["Action"]))
        and any(_like(pattern, call.resource) for pattern in _listed(statement["Resource"]))
        and all(_holds(operator, keys, call) for operator, keys in statement.get("Condition", {}).items())
    )


def _holds(operator: str, keys: Mapping[str, Any], call: Call) -> bool:
    quantifier, _, name = operator.rpartition(":")
    context = {key.lower(): values for key, values in call.context.items()}
    for key, wanted in keys.items():
        present = context.get(key.lower())
        if name == "Null":
            if (present is None) != (str(wanted).lower() == "true"):
                return False
            continue
        matches, negated = _OPERATORS[name]
        one = [_match_one(value, _listed(wanted), matches, negated=negated) for value in present or []]
        if quantifier == "ForAllValues":
            holds = all(one)  # also of none
        elif quantifier == "ForAnyValue":
            holds = any(one)
        elif quantifier:
            raise ValueError(f"not understood: {operator}")
        else:
            holds = negated if present is None else len(one) == 1 and one[0]
        if not holds:
            return False
    return True


def _match_one(value: str, wanted: Sequence[str], matches: Callable[[str, str], bool], *, negated: bool) -> bool:
    return any(matches(pattern, value) for pattern in wanted) != negated


def _like(pattern: str, value: str) -> bool:
    """``*`` and ``?``; brackets, which have a meaning for fnmatch, have none for IAM."""
    return re.fullmatch(translate(pattern.replace("[", "[[]")), value) is not None


_OPERATORS: dict[str, tuple[Callable[[str, str], bool], bool]] = {
    "StringEquals": (str.__eq__, False),
    "StringNotEquals": (str.__eq__, True),
    "StringLike": (_like, False),
    "StringNotLike": (_like, True),
}


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


class _Resolver:
    """Values as CloudFormation would put them; of an ``Fn::If`` the first branch, which allows more."""

    def __init__(self, parameters: Mapping[str, Any], resources: Mapping[str, Any]) -> None:
        self._parameters = parameters
        self._resources = resources

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list):
            return [found for each in value if (found := self(each)) is not None]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, given),) = value.items()
            if (function := _FUNCTIONS.get(name)) is not None:
                return function(self, given)
            if name.startswith("Fn::"):
                raise ValueError(f"not understood: {name}")
        return {key: self(each) for key, each in value.items()}

    def ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return None
        if name in _PSEUDO:
            return _PSEUDO[name]
        if name in self._parameters:
            default = self._parameters[name].get("Default", "")
            return "s3://catalogs/own.toml" if name == "CatalogUri" else default
        kind = self._resources[name]["Type"]
        return self.arn(name) if kind in _REF_IS_ARN else name

    def arn(self, name: str) -> str:
        return _ARNS[self._resources[name]["Type"]].format(name)

    def attribute(self, where: Any) -> str:
        name, _, what = (where if isinstance(where, str) else ".".join(where)).partition(".")
        if what not in {"Arn", "Id"}:
            raise ValueError(f"not understood: {where}")
        return self.arn(name)

    def sub(self, given: Any) -> str:
        text, more = (given[0], given[1]) if isinstance(given, list) else (given, {})

        def put(match: re.Match[str]) -> str:
            name = match[1]
            if name in more:
                return str(self(more[name]))
            return self.attribute(name) if "." in name else str(self.ref(name))

        return re.sub(r"\$\{([^!}]+)\}", put, text)


_FUNCTIONS: dict[str, Callable[[_Resolver, Any], Any]] = {
    "Ref": lambda resolve, name: resolve.ref(name),
    "Fn::GetAtt": lambda resolve, where: resolve.attribute(where),
    "Fn::Sub": lambda resolve, given: resolve.sub(given),
    "Fn::If": lambda resolve, given: resolve(given[1]),
    "Fn::Join": lambda resolve, given: given[0].join(map(str, resolve(given[1]))),
    "Fn::Select": lambda resolve, given: resolve(given[1])[int(given[0])],
    "Fn::Split": lambda resolve, given: str(resolve(given[1])).split(given[0]),
}


# ── Calls of DynamoDB ──────────────────────────────────────────────────────────────────────────────────────

_ON_ONE_ITEM = {"GetItem", "PutItem", "UpdateItem", "DeleteItem"}
_OF_A_TRANSACTION = {
    "Get": "GetItem",
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
_STATEMENT = re.compile(r"""(INSERT|UPDATE|DELETE|SELECT)\b.*?"(\w+)".*?'([^']*)'""", re.DOTALL)


def table_arn(table: str) -> str:
    return _ARNS["AWS::DynamoDB::Table"].format(table)


def calls_of(operation: str, parameters: Mapping[str, Any], partition_keys: Mapping[str, str]) -> Iterator[Call]:
    """What IAM is asked for one operation of DynamoDB; ``partition_keys`` names the key attribute of each table."""

    def call(action: str, table: str, keys: Sequence[str] | None) -> Call:
        context = {} if keys is None else {"dynamodb:LeadingKeys": keys}
        return Call(f"dynamodb:{action}", table_arn(table), context)

    def key(table: str, item: Mapping[str, Any]) -> str:
        return str(from_item(item)[partition_keys[table]])

    table = parameters.get("TableName", "")
    if operation in _ON_ONE_ITEM:
        yield call(operation, table, [key(table, parameters.get("Key") or parameters["Item"])])
    elif operation == "Query":
        yield call(operation, table, _queried(parameters, partition_keys[table]))
    elif operation in {"BatchGetItem", "BatchWriteItem"}:
        for name, asked in parameters["RequestItems"].items():
            items = asked["Keys"] if operation == "BatchGetItem" else [_written(each) for each in asked]
            yield call(operation, name, [key(name, item) for item in items])
    elif operation in {"TransactGetItems", "TransactWriteItems"}:
        for part in parameters["TransactItems"]:
            ((kind, given),) = part.items()
            item = given.get("Key") or given["Item"]
            yield call(_OF_A_TRANSACTION[kind], given["TableName"], [key(given["TableName"], item)])
    elif operation in {"ExecuteStatement", "BatchExecuteStatement", "ExecuteTransaction"}:
        texts = parameters.get("Statements") or parameters.get("TransactStatements") or [parameters]
        for each in texts:
            if not (match := _STATEMENT.search(each["Statement"])):
                raise ValueError(f"not understood: {each}")
            yield call(f"PartiQL{match[1].title()}", match[2], [match[3]])
    else:
        yield call(operation, table, None)


def _queried(parameters: Mapping[str, Any], name: str) -> list[str]:
    expression = parameters["KeyConditionExpression"]
    names = {"#" + name, name} | {k for k, v in parameters.get("ExpressionAttributeNames", {}).items() if v == name}
    for placeholder in names:
        if match := re.search(rf"(?<![\w#]){re.escape(placeholder)}\s*=\s*(:\w+)", expression):
            return [str(from_item(parameters["ExpressionAttributeValues"])[match[1]])]
    raise ValueError(f"not understood: {expression}")


def _written(request: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = request.get("PutRequest", {}).get("Item") or request["DeleteRequest"]["Key"]
    return found
