//! The codes of what a client did wrong, or asked for in vain. Each changes nothing.

mod blobs;
mod manifests;
mod requests;

use super::Api;
use crate::harness::client::Image;

/// A repository `app` with one image.
async fn with_image() -> (Api, Image) {
    let api = Api::start().await;
    let image = Image::small("codes");
    api.push("app", "v1", &image).await;
    (api, image)
}
