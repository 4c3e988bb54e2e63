"""Every example of the original documents, and the test that runs it or the reason why none does."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NamedTuple

import pytest

from tests.examples.world import Key, document_blocks


class Runs(NamedTuple):
    """The example runs in this test; `note` says what stands for its placeholders."""

    test: str
    note: str = ""


class NotHere(NamedTuple):
    reason: str


DEV = NotHere("`flow dev` is a later part")
SLURM = NotHere("SLURM's own script, for comparison")
FUNCTIONS = NotHere("functions on GPU machines (invoke, FlowApp, function) are a later part")
INSTALL = NotHere("the vendor's installation")
DRAWING = NotHere("a drawing")
MOUNTS, PYTHON, CLI, MESSAGES = "test_seeds_mounts", "test_seeds_python", "test_seeds_cli", "test_seeds_messages"
S3 = "buckets of these names are in an S3 on loopback"
IMAGES = "images of these names are on the machine"
TASK_NAME = "task-abc123 is a task's name"
SLURM_GUIDE = "Guide for SLURM Users"
MIGRATION = f"{SLURM_GUIDE} > Migration Examples"
INTERACTIVE = "Common Patterns > Interactive Development"
ERRORS = "Troubleshooting > Common Errors"

TABLE: dict[tuple[str, str, int], Runs | NotHere] = {
    ("guide", "Quick Start", 0): Runs(f"{MOUNTS}.test_quick_start", S3),
    ("guide", "Supported Data Sources > 1. S3 Buckets", 0): Runs(f"{MOUNTS}.test_s3_sources", S3),
    ("guide", "Supported Data Sources > 2. Volumes", 0): Runs(
        f"{MOUNTS}.test_volume_sources", "vol_abc123def456 is a volume's id"
    ),
    ("guide", "Supported Data Sources > 3. Local Files (Development)", 0): Runs(
        f"{MOUNTS}.test_local_sources", "/home/user is a folder of the test"
    ),
    ("guide", "Examples > Training with S3 Dataset", 0): Runs(f"{MOUNTS}.test_training_with_s3", S3),
    ("guide", "Examples > Distributed Training with Shared Storage", 0): Runs(
        f"{MOUNTS}.test_distributed_training", f"{S3}; torchrun is a small program with the same options"
    ),
    ("guide", "Examples > Model Serving with Cached Models", 0): Runs(
        f"{MOUNTS}.test_model_serving", "transformers_server is a module of the project"
    ),
    ("guide", "Examples > Data Preprocessing Pipeline", 0): Runs(f"{MOUNTS}.test_preprocessing", S3),
    ("guide", "Best Practices > 2. Optimize Performance", 0): Runs(f"{MOUNTS}.test_mount_only_what_is_needed", S3),
    ("guide", "Best Practices > 3. Handle Credentials Securely", 0): Runs(
        f"{MOUNTS}.test_credentials_from_the_environment", S3
    ),
    ("guide", "Best Practices > 4. Use Descriptive Names", 0): Runs(f"{MOUNTS}.test_descriptive_names"),
    ("guide", "Troubleshooting > S3 Access Denied", 0): Runs(f"{MOUNTS}.test_s3_access_denied", S3),
    ("guide", "Troubleshooting > Volume Not Found", 0): Runs(f"{MOUNTS}.test_volume_not_found"),
    ("guide", "Troubleshooting > Mount Path Conflicts", 0): Runs(f"{MOUNTS}.test_mount_path_conflicts", S3),
    ("guide", "Advanced Usage > Dynamic Volume Selection", 0): Runs(f"{MOUNTS}.test_dynamic_volume_selection"),
    ("guide", "Advanced Usage > Conditional Mounting", 0): Runs(f"{MOUNTS}.test_conditional_mounting", S3),
    ("readme", "Quick Start > 1. Install and Configure", 0): INSTALL,
    ("readme", "Quick Start > 2. Run on GPU", 0): DEV,
    ("readme", "Quick Start > 2. Run on GPU", 1): Runs(
        f"{CLI}.test_an_interactive_machine", "<task-id> is the id of the machine"
    ),
    ("readme", "Quick Start > 2. Run on GPU", 2): Runs(f"{PYTHON}.test_submit_a_script"),
    ("readme", "Overview", 0): DRAWING,
    ("readme", "Installation > Quick Install (Recommended)", 0): INSTALL,
    ("readme", "Installation > Quick Install (Recommended)", 1): INSTALL,
    ("readme", "Installation > Development Setup", 0): INSTALL,
    ("readme", "Installation > Alternative: pip install", 0): INSTALL,
    ("readme", "Authentication", 0): Runs(f"{CLI}.test_init"),
    ("readme", "Authentication", 1): Runs(f"{CLI}.test_settings_from_the_environment"),
    ("readme", "Authentication", 2): Runs(f"{CLI}.test_settings_from_a_file"),
    ("readme", "Authentication", 3): Runs(f"{CLI}.test_settings_from_a_file"),
    ("readme", "Basic Usage > Python API", 0): Runs(f"{PYTHON}.test_python_api"),
    ("readme", "Basic Usage > Code Upload", 0): Runs(f"{PYTHON}.test_code_upload", IMAGES),
    ("readme", "Basic Usage > Handling Dependencies", 0): Runs(
        f"{PYTHON}.test_dependencies", f"{IMAGES}; uv is pip by another name"
    ),
    ("readme", "Basic Usage > Command Line", 0): Runs(f"{CLI}.test_command_line", TASK_NAME),
    ("readme", "Basic Usage > YAML Configuration", 0): Runs(f"{CLI}.test_command_line"),
    ("readme", "Development Environment > Quick Start", 0): DEV,
    ("readme", "Development Environment > Uploading Code", 0): DEV,
    ("readme", "Development Environment > Examples", 0): DEV,
    ("readme", f"{SLURM_GUIDE} > Log Access", 0): Runs(f"{CLI}.test_logs", TASK_NAME),
    ("readme", f"{SLURM_GUIDE} > SLURM Script Compatibility", 0): NotHere("SLURM scripts are a later part"),
    ("readme", f"{MIGRATION} > Interactive Development (srun replacement)", 0): SLURM,
    ("readme", f"{MIGRATION} > Interactive Development (srun replacement)", 1): DEV,
    ("readme", f"{MIGRATION} > Basic GPU Job", 0): SLURM,
    ("readme", f"{MIGRATION} > Basic GPU Job", 1): Runs(f"{CLI}.test_yaml_of_a_job"),
    ("readme", f"{MIGRATION} > Basic GPU Job", 2): Runs(f"{PYTHON}.test_time_limit"),
    ("readme", f"{MIGRATION} > Multi-GPU Training", 0): SLURM,
    ("readme", f"{MIGRATION} > Multi-GPU Training", 1): Runs(
        f"{CLI}.test_yaml_of_many_nodes", "torchrun is a small program with the same options"
    ),
    ("readme", f"{MIGRATION} > Array Jobs", 0): SLURM,
    ("readme", f"{MIGRATION} > Array Jobs", 1): Runs(f"{PYTHON}.test_array_of_jobs"),
    ("readme", f"{SLURM_GUIDE} > Advanced Features", 0): Runs(
        f"{CLI}.test_yaml_of_an_image", f"{IMAGES}; a command is added, for the example is one line"
    ),
    ("readme", f"{SLURM_GUIDE} > Advanced Features", 1): NotHere("comments only"),
    ("readme", f"{SLURM_GUIDE} > Advanced Features", 2): NotHere("announced there as coming; a later part"),
    ("readme", "Instance Types", 0): Runs(f"{PYTHON}.test_instance_types"),
    ("readme", "Task Management > Task Object", 0): Runs(f"{PYTHON}.test_task_object", TASK_NAME),
    ("readme", "Task Management > Logging", 0): Runs(f"{PYTHON}.test_logging"),
    ("readme", "Task Management > SSH Access", 0): Runs(
        f"{PYTHON}.test_ssh_access", "in an image, where the code is at /workspace; nvidia-smi is a line of shell"
    ),
    ("readme", "Task Management > Extended Information", 0): Runs(f"{PYTHON}.test_extended_information"),
    ("readme", "Persistent Storage > Volume Management", 0): Runs(f"{PYTHON}.test_volumes"),
    ("readme", "Persistent Storage > Dynamic Volume Mounting", 0): Runs(
        f"{CLI}.test_mount_on_a_running_task", "vol_abc123, <volume> and <task> are real ones; the rest are names"
    ),
    ("readme", "Persistent Storage > Dynamic Volume Mounting", 1): Runs(
        f"{PYTHON}.test_mount_a_volume_on_a_running_task"
    ),
    ("readme", "Persistent Storage > Docker Cache Optimization", 0): Runs(f"{PYTHON}.test_docker_cache", IMAGES),
    ("readme", "Zero-Import Remote Execution > The Invoker Pattern", 0): FUNCTIONS,
    ("readme", "Zero-Import Remote Execution > The Invoker Pattern", 1): FUNCTIONS,
    ("readme", "Decorator Pattern > Basic Usage", 0): FUNCTIONS,
    ("readme", "Decorator Pattern > Advanced Configuration", 0): FUNCTIONS,
    ("readme", "Decorator Pattern > Module-Level Usage", 0): FUNCTIONS,
    ("readme", "Data Mounting > Quick Start", 0): Runs(f"{PYTHON}.test_data_mounting", S3),
    ("readme", "Data Mounting > Example: Training Pipeline", 0): Runs(
        f"{PYTHON}.test_training_pipeline", f"{S3}; get_secret is a function of the reader's"
    ),
    ("readme", "Distributed Training > Single-Node Multi-GPU (Recommended)", 0): Runs(
        f"{PYTHON}.test_one_node_many_gpus", "torchrun is a small program with the same options"
    ),
    ("readme", "Distributed Training > Multi-Node Training", 0): Runs(
        f"{PYTHON}.test_many_nodes", "torchrun is a small program with the same options"
    ),
    ("readme", "Advanced Features > Cost Optimization", 0): Runs(f"{PYTHON}.test_cost_and_environment"),
    ("readme", "Advanced Features > Environment Setup", 0): Runs(f"{PYTHON}.test_cost_and_environment", IMAGES),
    ("readme", "Advanced Features > Data Access", 0): Runs(f"{PYTHON}.test_data_access", S3),
    ("readme", "Error Handling", 0): Runs(f"{PYTHON}.test_errors", "with a config that is right, and with wrong ones"),
    ("readme", f"{INTERACTIVE} > Development Environment (flow dev)", 0): DEV,
    ("readme", f"{INTERACTIVE} > Google Colab Integration", 0): NotHere("`flow colab` is a later part"),
    ("readme", f"{INTERACTIVE} > Direct Jupyter Notebooks", 0): Runs(
        f"{PYTHON}.test_jupyter", "jupyter is a small server on Jupyter's port"
    ),
    ("readme", "Common Patterns > Checkpointing", 0): Runs(f"{PYTHON}.test_checkpointing"),
    ("readme", "Common Patterns > Experiment Sweep", 0): Runs(f"{PYTHON}.test_experiment_sweep"),
    ("readme", "Architecture > High-Level Overview", 0): DRAWING,
    ("readme", ERRORS, 0): NotHere("a message of a cloud; the local engine needs no key"),
    ("readme", ERRORS, 1): Runs(f"{MESSAGES}.test_no_available_instances"),
    ("readme", ERRORS, 2): NotHere("a message of a cloud; the local engine has no quota"),
    ("readme", ERRORS, 3): Runs(f"{MESSAGES}.test_invalid_instance_type", "this spelling is right by now"),
    ("readme", ERRORS, 4): Runs(f"{MESSAGES}.test_time_is_up"),
    ("readme", ERRORS, 5): Runs(f"{MESSAGES}.test_file_not_found"),
    ("readme", ERRORS, 6): Runs(f"{MESSAGES}.test_module_not_found"),
    ("readme", ERRORS, 7): Runs(f"{MESSAGES}.test_upload_size_limit"),
    ("readme", ERRORS, 8): Runs(f"{PYTHON}.test_code_from_git", "the address leads to a repository here"),
    ("readme", ERRORS, 9): Runs(f"{PYTHON}.test_code_in_the_image", IMAGES),
    ("readme", ERRORS, 10): Runs(f"{PYTHON}.test_code_from_s3", f"{S3}; aws is boto3"),
    ("readme", ERRORS, 11): Runs(f"{PYTHON}.test_code_on_a_volume"),
}


def test_no_example_is_forgotten() -> None:
    found = set(document_blocks())
    listed = {Key(*key) for key in TABLE}
    assert found - listed == set(), "blocks of the documents that are not in the table"
    assert listed - found == set(), "rows of the table that are in no document"


@pytest.mark.parametrize(("key", "row"), [(key, row) for key, row in TABLE.items() if isinstance(row, Runs)])
def test_the_test_of_an_example_uses_it(key: tuple[str, str, int], row: Runs) -> None:
    module_name, _, name = row.test.partition(".")
    module = importlib.import_module(f"tests.examples.{module_name}")
    test = getattr(module, name)
    _, heading, index = key
    constants = set(constants_of(test, module))
    assert heading in constants, f"{row.test} does not name {heading!r}"
    assert index in constants or index == 0


def constants_of(function: FunctionType, module: Any, depth: int = 1) -> Iterator[object]:
    """What a function spells out, with its module's constants and functions that it names."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Constant):
            yield node.value
        elif isinstance(node, ast.Name):
            value = getattr(module, node.id, None)
            if isinstance(value, str):
                yield value
            elif depth and isinstance(value, FunctionType) and value.__module__ == module.__name__:
                yield from constants_of(value, module, depth - 1)
