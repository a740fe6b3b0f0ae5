//! Glance: images by name or id.

use serde::Deserialize;

use crate::call::Call;
use crate::client::Client;
use crate::compute::optional;
use crate::config::Service;
use crate::error::{Error, ErrorKind};
use crate::id::ResourceId;

/// Glance, by a [`Client`].
#[derive(Clone, Copy, Debug)]
pub struct Images<'a>(&'a Client);

impl Client {
    /// The image service.
    #[must_use]
    pub const fn image(&self) -> Images<'_> {
        Images(self)
    }
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ResourceId,
    /// Its name. Names need not be unique.
    #[serde(default)]
    pub name: Option<String>,
    /// `active` when servers can be made of it.
    #[serde(default)]
    pub status: String,
    /// When it was made, as Glance writes it.
    #[serde(default)]
    pub created_at: String,
}

impl Images<'_> {
    /// Images of exactly this name that can be used.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn named(&self, name: &str) -> Result<Vec<Image>, Error> {
        let call = Call::get(Service::Image, "/images", &[]).filtered([("name", name), ("status", "active")]);
        let mut found: Vec<Image> = self.0.list(call, "images").await?;
        found.retain(|image| image.name.as_deref() == Some(name) && image.status == "active");
        Ok(found)
    }

    /// The image of this name or id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], and [`ErrorKind::Invalid`] when several have the name: which of them is meant cannot be known.
    pub async fn find(&self, name_or_id: &str) -> Result<Image, Error> {
        let mut named = self.named(name_or_id).await?;
        match named.len() {
            1 => return Ok(named.remove(0)),
            0 => {}
            n => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{n} images have the name {name_or_id}: name one by its id"),
                ));
            }
        }
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no active image {name_or_id}"));
        let id: ResourceId = name_or_id.parse().map_err(|_| missing())?;
        let answer =
            optional(self.0.send(&Call::get(Service::Image, "/images/{}", &[&id])).await)?.ok_or_else(missing)?;
        let image: Image = serde_json::from_slice(&answer.body).map_err(|error| Error::unreadable("image", error))?;
        if image.status == "active" { Ok(image) } else { Err(missing()) }
    }
}
