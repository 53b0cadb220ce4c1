"""Refusals: one exception class and one table of stable codes, shared by the command line and the HTTP interface."""

from __future__ import annotations

CODES: dict[str, str] = {
    # the request
    "bad_request": "The request is malformed.",
    "empty_body": "The request holds no image.",
    "unsupported_media_type": "The media type is not one that is read here, or the bytes are of another type than declared.",
    "too_large": "The body is larger than the limit.",
    "request_timeout": "The body did not arrive in time.",
    "not_found": "There is no such resource.",
    "unknown_model": "No model of that name is loaded.",
    "not_acceptable": "The answer cannot be given in a media type that the Accept header names.",
    "method_not_allowed": "The resource does not answer to this method.",
    "unauthenticated": "A valid bearer token is needed.",
    "session_expired": "The session is over; sign in again.",
    "csrf": "The request was not made by this service's own page.",
    "unknown_site": "The site is none of those of the settings.",
    "forbidden": "The token's role may not do this.",
    "rate_limited": "This caller has used up its requests for now.",
    "overloaded": "The queue is full, or too much is being received; try again later.",
    "deadline_exceeded": "The request waited longer than its deadline; try again later.",
    "not_ready": "The service is starting or stopping.",
    "storage_full": "The result could not be stored: the disk is full.",
    "storage_unavailable": "The result could not be stored or read; try again later.",
    "internal_error": "An unexpected fault on the server's side; it was counted and logged.",
    # the image
    "not_decodable": "The bytes are not a readable image.",
    "inconsistent_image": "The header and the pixel data contradict each other.",
    "unsupported_transfer_syntax": "The DICOM transfer syntax or photometric interpretation is not read here.",
    "no_pixel_data": "The DICOM object holds no image.",
    "image_too_large": "The image has more pixels than the limit.",
    "own_output": "The object was made by this software; it is not analysed again.",
    # the image and the model
    "multi_frame": "The image has several frames; this model takes one.",
    "region_required": "A whole slide is read by region, and none was asked for.",
    "not_tissue": "The image shows a slide's label or overview, not its tissue.",
    "modality_not_accepted": "The modality is outside the model card.",
    "body_part_not_accepted": "The body part is outside the model card.",
    "view_not_accepted": "The view is outside the model card.",
    "age_not_accepted": "The patient's age is outside the model card.",
    "too_small": "The image is smaller than the model card allows.",
    # the model package
    "package_invalid": "The model package is incomplete, of an unknown schema, or was changed after release.",
    "package_untrusted": "The model package is not signed by a key that this site trusts.",
    "candidate_not_compared": "The package was not compared with the one that is current here, and no reason was given.",
    "candidate_worse": "The comparison says that the package is worse than the current one, and no reason was given.",
    "model_output_invalid": "The model gave a value that is not a finite number; nothing was stored.",
    # the archive
    "archive_unavailable": "The archive cannot be reached, or lets nobody in; it is tried again.",
    "archive_refused": "The archive did not give an instance, or did not take a result.",
    "not_asked_for": "The rules of the settings do not ask for this instance.",
    # the worklist
    "worklist_empty": "There is nothing to label just now.",
    "item_taken": "The item is somebody else's, is done, or waits to be scored again.",
    "lease_lost": "The lease is over, and the item may be somebody else's.",
    # labels
    "label_invalid": "The label does not fit the image or the model card.",
    "label_conflict": "Another label of this reader stands, or its key was used for another one.",
    "stale_result": "The image was scored by another model package since; look at it again, or say that it was seen earlier.",
    # data and commands
    "burned_in_annotation": "An image is said to hold writing in its pixels, which may be a patient's name.",
    "too_few_labels": "There are too few labels for an interval.",
    "one_class": "The labels are all of one class.",
    "cluster_unavailable": "The Ray cluster cannot be reached, or did not start; what was done is kept.",
    "folder_unavailable": "The folder went away while it was read; what was done is kept.",
    "data_invalid": "The data does not fit what was asked; the message names the row.",
    "config_invalid": "A setting is missing or out of range.",
    "backup_invalid": "The backup is incomplete, or was changed.",
    "output_exists": "The output exists already and was made from something else.",
}
"""Code -> what it means. Codes are stable: they are never renamed or reused."""


class Refusal(Exception):
    """Input that is refused, with a stable code.

    Parameters
    ----------
    code : str
        A key of :data:`CODES`.
    detail : str
        What is wrong with this input, in a sentence. It never holds a patient's name, an identifier or a file name.

    Raises
    ------
    KeyError
        If ``code`` is not in :data:`CODES`.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail or CODES[code]
        CODES[code]  # an unknown code is a programming error and must not pass with a detail of its own
        super().__init__(f"[{code}] {self.detail}")
