"""`aws s3 cp s3://BUCKET/KEY TO`, by boto3."""

from __future__ import annotations

import argparse
from pathlib import Path

import boto3

parser = argparse.ArgumentParser(prog="aws")
parser.add_argument("service", choices=["s3"])
parser.add_argument("verb", choices=["cp"])
parser.add_argument("source")
parser.add_argument("target", type=Path)
given = parser.parse_args()
bucket, _, key = given.source.removeprefix("s3://").partition("/")
target = given.target / Path(key).name if given.target.is_dir() else given.target
boto3.client("s3").download_file(bucket, key, str(target))
print(f"download: {given.source} to {target}")
