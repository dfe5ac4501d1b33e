import pytest
from text_cases import make_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Makes each checkpoint folder once: folders(tokenizer, template)."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}

    def get(name, template=None):
        if (name, template) not in made:
            made[name, template] = make_folder(root, name, template)
        return made[name, template]

    return get
