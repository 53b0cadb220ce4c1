// What codes mean, for a reader who has not read the documentation.

export const VERDICTS = {
  accept: { sign: "✓", title: "Within limits", text: "Expected error and distance from the training images are as usual." },
  review: { sign: "!", title: "Let an expert read it", text: "The model’s answer on this image is less certain than usual." },
  refuse: { sign: "✕", title: "The model has no say", text: "The image is readable, but not of a kind the model can judge. No finding is called." },
};

export const ROLES = { annotator: "reader", operator: "operator", device: "device" };

export const SKIPS = {
  unreadable: "The image cannot be read",
  not_my_field: "Not my field",
  unsure: "I am not sure",
  wrong_modality: "Wrong kind of image",
  other: "Another reason",
};

const PROBLEMS = {
  item_taken: "Another reader has this one now.",
  worklist_empty: "Nothing is waiting to be read.",
  lease_lost: "This one is no longer reserved for you.",
  stale_result: "The model’s answer has changed since you opened this. Look at it again.",
  session_expired: "You were signed out after a while. Sign in again; what you marked is kept.",
  storage_full: "The disk of the service is full: nothing was saved. Tell the operator, then try again.",
  storage_unavailable: "Nothing was saved just now. Try again.",
  overloaded: "The service is busy. Try again in a moment.",
  rate_limited: "Too many requests at once. Wait a moment.",
};

/** Say what went wrong. */
export function wordsOf(problem) {
  if (!problem.code) return "Something in this page failed. Reload it; what was saved is safe.";
  return PROBLEMS[problem.code] ?? problem.message;
}

const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** A number for reading. */
export const say = (value) => number.format(value);

/** A share in percent. */
export const percent = (share) => `${Math.round(100 * share)}%`;

/** A day, as this reader’s place writes it. */
export const day = (text) => new Date(text).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
