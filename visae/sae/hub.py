"""To and from the Hugging Face hub; a repository holds the same two files as a folder."""

from pathlib import Path

from visae.sae.files import CARD, WEIGHTS, load_card


def split_id(name: str) -> tuple[str, str]:
    """Repository id and folder inside it, of `user/repository` or `user/repository/folder`.

    Raises:
        ValueError: for another form.
    """
    parts = name.removeprefix("hf:").strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise ValueError(f"a hub name is user/repository or user/repository/folder, got {name!r}")
    return "/".join(parts[:2]), "/".join(parts[2:])


def push_sae(
    path: Path | str, name: str, *, private: bool = True, message: str | None = None, token: str | None = None
) -> str:
    """Uploads the SAE in a folder; the repository is made if it does not exist.

    Args:
        path: folder that `save_sae` wrote; its other files stay here.
        name: `user/repository` or `user/repository/folder`.
        private: of a repository that is made now.
        message: of the commit.
        token: of the hub; None uses the one you logged in with.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: if the folder holds no SAE.
    """
    from huggingface_hub import HfApi

    card = load_card(path)
    if not (Path(path) / WEIGHTS).is_file():
        raise FileNotFoundError(f"{Path(path) / WEIGHTS} does not exist; there is nothing to push")
    repo, folder = split_id(name)
    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=str(path),
        path_in_repo=folder or None,
        allow_patterns=[WEIGHTS, CARD],
        commit_message=message or f"visae {card.kind} dictionary: {card.n_latents} latents on {card.model.get('id')}",
    )
    return str(getattr(commit, "commit_url", commit))


def pull_sae(
    name: str, *, revision: str | None = None, cache: Path | str | None = None, token: str | None = None
) -> Path:
    """Downloads an SAE and says in which folder it lies.

    Args:
        name: `user/repository` or `user/repository/folder`.
        revision: branch, tag or commit; None takes the default branch.
        cache: where downloads are kept; None takes the hub's own cache.
        token: of the hub, for private repositories.
    """
    from huggingface_hub import snapshot_download

    repo, folder = split_id(name)
    prefix = f"{folder}/" if folder else ""
    root = snapshot_download(
        repo, revision=revision, cache_dir=cache, token=token, allow_patterns=[prefix + WEIGHTS, prefix + CARD]
    )
    return Path(root) / folder
